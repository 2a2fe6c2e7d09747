"""Self-speculative decoding that chooses exit, draft length and confidence stop as it runs.

Every round is one of `inference.speculate`, with or without drafts, so tokens are the full model's;
what differs is who decides (`inference.controller`), and that time is taken.

Letters: S positions of the prompt.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch

from inference.controller import LOOK, Controller
from inference.ending import Ending, end_round
from inference.generation import Round, Settings
from inference.laps import Laps
from inference.shadow import Seen, seen_in, shadow
from inference.speculate import speculate
from inference.workspace import Workspace, prepare
from models.llama import Llama
from models.plan import full


@torch.inference_mode()
def adaptive(
    model: Llama, prompt_ids: Sequence[int], *, controller: Controller, settings: Settings
) -> Iterator[Round]:
    """Yield the full model's tokens, some at a time where that is predicted to be faster.

    Greedy tokens equal those of autoregressive decoding; sampled ones have the same distribution.
    The first round reads the prompt and drafts nothing. Time for looking at other exits and for
    choosing counts as time of the round after it.

    Args:
        model: the whole model.
        prompt_ids: S ids.
        controller: made for this depth; it keeps what it learns for the next prompt.
        settings: length, sampling, seed, ends of sequence.

    Raises:
        ValueError: if the prompt does not fit.
    """
    started = perf_counter()
    depth = model.config.num_hidden_layers
    queries = min(controller.most, settings.max_new_tokens) + 1
    work = prepare(model, prompt_ids, settings, [full(depth)], max_queries=queries)
    ids = torch.tensor([list(prompt_ids)], device=work.device)  # (1, S)
    ending, seen = Ending(settings, prompt_ids), list[Seen]()
    start, left, num_drafts, confidence = 0, settings.max_new_tokens, 0, 0.0
    while True:
        laps, is_watching = Laps(work.device), controller.is_watching
        done = speculate(
            model,
            ids,
            controller.phases,
            work,
            start,
            min(num_drafts, left - 1),
            settings.sampling,
            confidence=confidence,
            lap=laps.lap,
        )
        here = [seen_in(done, start, ids.shape[1], LOOK)] if is_watching else None
        seen = _newest([*seen, *here]) if here else []
        start += ids.shape[1] + len(done.tokens) - 1
        ids = done.last[None]  # (1, 1): the one token that no layer has seen
        round_ = end_round(ending, done.tokens, done.drafted, perf_counter() - started)
        yield round_
        left -= len(done.tokens)
        if ending.is_over or not left:
            return
        started = perf_counter()
        controller.observe(laps.read(), round_)
        seen = _reflect(model, work, controller, seen, settings)
        num_drafts, confidence = controller.setting.num_drafts, controller.setting.confidence


def _reflect(
    model: Llama, work: Workspace, controller: Controller, seen: list[Seen], settings: Settings
) -> list[Seen]:
    """Let the controller decide, and look if it wants to; return what was not looked at."""
    if not controller.decide(sum(each.count for each in seen)):
        return seen
    started = perf_counter()
    matches, confidences = shadow(model, work, seen, controller.exits, settings.sampling)
    controller.looked(matches, confidences, perf_counter() - started)
    return []


def _newest(seen: list[Seen]) -> list[Seen]:
    """Drop the oldest rounds as long as the others fill a look."""
    while sum(each.count for each in seen[1:]) >= LOOK:
        seen = seen[1:]
    return seen
