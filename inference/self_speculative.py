"""Self-speculative decoding (LayerSkip, arXiv 2404.16710, appendix A.4): lossless early exit.

The layers below the exit draft; the layers above it verify all drafts in one pass, starting from
the residual streams that drafting left at the exit. No layer runs twice on a token.

Letters: S positions, D width, V vocabulary, E exit layer, L layers, d drafts of a round.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from inference.early_exit import check_exit
from inference.ending import Ending, end_round
from inference.generation import Round, Settings
from inference.sample import SamplingConfig, accept, choose
from inference.workspace import Workspace, prepare
from models.llama import Llama
from models.plan import LayerPlan, full


@torch.inference_mode()
def self_speculative(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    exit_layer: int,
    num_speculations: int,
    settings: Settings,
    draft_confidence: float = 0.0,
) -> Iterator[Round]:
    """Yield the full model's tokens, some at a time: accepted drafts, then one of its own.

    Greedy tokens equal those of autoregressive decoding; sampled ones have the same distribution.
    A round drafts `num_speculations` tokens, or all that are left but one; with
    `draft_confidence` it ends with the first draft that the exit finds less likely than that, at
    the price of the host waiting for the device at each draft. The first round reads the prompt:
    its drafting through the layers below E, its verification through the others.

    Raises:
        ValueError: if E is not in 1..L-1, nothing would be drafted, or the prompt does not fit.
    """
    started = perf_counter()
    draft_plan, verify_plan = _plans(model, exit_layer, num_speculations)
    work = prepare(
        model,
        prompt_ids,
        settings,
        [draft_plan, verify_plan],
        max_queries=min(num_speculations, settings.max_new_tokens) + 1,
    )
    ids = torch.tensor([list(prompt_ids)], device=work.device)  # (1, S)
    start, left, depth = 0, settings.max_new_tokens, model.config.num_hidden_layers
    ending = Ending(settings, prompt_ids)
    while left:
        num_drafts = min(num_speculations, left - 1)
        h, drafts, draft_p = _draft(
            model, ids, draft_plan, work, start, num_drafts, settings.sampling, draft_confidence
        )
        h = model(h, work.tokens(start, h.shape[1]), verify_plan)[depth]  # (1, S + d, D)
        logits = model.unembed(h[0, -len(drafts) - 1 :])  # (d + 1, V)
        logits = work.change(logits, start + h.shape[1])
        tokens, drafted, last = accept(logits, drafts, draft_p, settings.sampling, work.generator)
        start += ids.shape[1] + len(tokens) - 1
        work.cache.crop(start)
        ids = last[None]  # (1, 1): the one token that no layer has seen
        yield end_round(ending, tokens, drafted, perf_counter() - started)
        left = 0 if ending.is_over else left - len(tokens)
        started = perf_counter()


def _plans(model: Llama, exit_layer: int, num_speculations: int) -> tuple[LayerPlan, LayerPlan]:
    check_exit(model, exit_layer)
    if num_speculations < 1:
        raise ValueError(
            f"num_speculations must be at least 1, got {num_speculations}; "
            "to draft nothing use strategy=autoregressive"
        )
    depth = model.config.num_hidden_layers
    return full(exit_layer), full(depth, start=exit_layer)


def _draft(
    model: Llama,
    ids: Tensor,
    plan: LayerPlan,
    work: Workspace,
    start: int,
    num_drafts: int,
    sampling: SamplingConfig,
    confidence: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Draft after the uncached tokens ids (1, S), which follow `start` cached ones.

    At most `num_drafts`, ending with the first whose probability is below `confidence`.

    The last draft goes through the layers too, so that verification need not.

    Returns:
        The residual stream at the exit (1, S + d, D); d drafts (1,); the processed probabilities
        (1, V) that each was drawn from, none when greedy.
    """
    states: list[Tensor] = []
    drafts: list[Tensor] = []
    draft_p: list[Tensor] = []
    while True:
        work.read(start, ids)
        h = model(ids, work.tokens(start, ids.shape[1]), plan)[plan.exits[-1]]  # (1, S, D)
        states.append(h)
        if len(drafts) == num_drafts:
            return torch.cat(states, dim=1), drafts, draft_p
        start += ids.shape[1]
        logits = work.change(model.unembed(h[:, -1]), start)  # (1, V)
        token, p = choose(logits, sampling, work.generator)  # (1,)
        drafts.append(token)
        if confidence and float(logits.softmax(-1)[0, token]) < confidence:
            num_drafts = len(drafts)
        if p is not None:
            draft_p.append(p)
        ids = token[None]  # (1, 1)
