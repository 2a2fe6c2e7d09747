"""Self-speculative decoding: a plan that leaves out some of the model drafts, the model verifies.

The first visits, as far as draft and full plan share them, run once on a token: verification goes
on from the states, keys and values that they leave. With an early exit as the draft (LayerSkip,
arXiv 2404.16710, appendix A.4) that is all of it, and no layer runs twice on a token. What else a
draft visits, such as layers with one branch skipped (SWIFT, arXiv 2410.06916), sees the verified
keys and values of earlier rounds; what it adds is cropped before verification writes its own.

Letters: S positions of the prompt, L layers.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch

from inference.decoding_plan import split
from inference.ending import Ending, end_round
from inference.generation import Round, Settings
from inference.speculate import speculate
from inference.workspace import prepare
from models.llama import Llama
from models.plan import LayerPlan, full


@torch.inference_mode()
def self_speculative(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    draft: LayerPlan,
    num_speculations: int,
    settings: Settings,
    draft_confidence: float = 0.0,
) -> Iterator[Round]:
    """Yield the full model's tokens, some at a time: accepted drafts, then one of its own.

    Greedy tokens equal those of autoregressive decoding; sampled ones have the same distribution.
    A round drafts `num_speculations` tokens, or all that are left but one; with
    `draft_confidence` it ends with the first token that the draft finds less likely than that, at
    the price of the host waiting for the device at each. The first round reads the prompt; it
    drafts only if the draft is a whole prefix, else the prompt would run through some layers twice.

    Args:
        model: the whole model.
        prompt_ids: S ids.
        draft: drafts come from its last exit; `full(E)` is an early exit at E.
        num_speculations: most drafts of a round.
        settings: length, sampling, seed, ends of sequence.
        draft_confidence: a probability; 0 never ends a draft early.

    Raises:
        ValueError: if the plan is no draft for this model, nothing would be drafted, or the prompt
            does not fit.
    """
    started = perf_counter()
    phases, depth = split(model.config, draft), model.config.num_hidden_layers
    _check_length(num_speculations)
    work = prepare(
        model,
        prompt_ids,
        settings,
        [full(depth)],
        max_queries=min(num_speculations, settings.max_new_tokens) + 1,
    )
    ids = torch.tensor([list(prompt_ids)], device=work.device)  # (1, S)
    ending = Ending(settings, prompt_ids)
    start, left = 0, settings.max_new_tokens
    num_drafts = 0 if phases.draft_only.visits else min(num_speculations, left - 1)
    while left:
        done = speculate(
            model,
            ids,
            phases,
            work,
            start,
            num_drafts,
            settings.sampling,
            confidence=draft_confidence,
        )
        start += ids.shape[1] + len(done.tokens) - 1
        ids = done.last[None]  # (1, 1): the one token that no layer has seen
        yield end_round(ending, done.tokens, done.drafted, perf_counter() - started)
        left = 0 if ending.is_over else left - len(done.tokens)
        num_drafts = min(num_speculations, left - 1)
        started = perf_counter()


def _check_length(num_speculations: int) -> None:
    if num_speculations < 1:
        raise ValueError(
            f"num_speculations must be at least 1, got {num_speculations}; "
            "to draft nothing use strategy=autoregressive"
        )
