"""Self-speculative decoding: a plan that leaves out some of the model drafts, the model verifies.

The first visits, as far as draft and full plan share them, run once on a token: verification goes
on from the states, keys and values that they leave. With an early exit as the draft (LayerSkip,
arXiv 2404.16710, appendix A.4) that is all of it, and no layer runs twice on a token. What else a
draft visits, such as layers with one branch skipped (SWIFT, arXiv 2410.06916), sees the verified
keys and values of earlier rounds; what it adds is cropped before verification writes its own.

Letters: S positions, D width, V vocabulary, L layers, k shared visits, d drafts of a round.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from inference.decoding_plan import Phases, split
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
        h, drafts, draft_p = _draft(
            model, ids, phases, work, start, num_drafts, settings.sampling, draft_confidence
        )
        work.cache.crop(start, first_layer=phases.shared.exits[-1])
        h = model(h, work.tokens(start, h.shape[1]), phases.verify)[depth]  # (1, S + d, D)
        logits = model.unembed(h[0, -len(drafts) - 1 :])  # (d + 1, V)
        logits = work.change(logits, start + h.shape[1])
        tokens, drafted, last = accept(logits, drafts, draft_p, settings.sampling, work.generator)
        start += ids.shape[1] + len(tokens) - 1
        work.cache.crop(start)
        ids = last[None]  # (1, 1): the one token that no layer has seen
        yield end_round(ending, tokens, drafted, perf_counter() - started)
        left = 0 if ending.is_over else left - len(tokens)
        num_drafts = min(num_speculations, left - 1)
        started = perf_counter()


def _check_length(num_speculations: int) -> None:
    if num_speculations < 1:
        raise ValueError(
            f"num_speculations must be at least 1, got {num_speculations}; "
            "to draft nothing use strategy=autoregressive"
        )


def _draft(
    model: Llama,
    ids: Tensor,
    phases: Phases,
    work: Workspace,
    start: int,
    num_drafts: int,
    sampling: SamplingConfig,
    confidence: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Draft after the uncached tokens ids (1, S), which follow `start` cached ones.

    At most `num_drafts`, ending with the first whose probability is below `confidence`.

    The last draft goes through the shared visits too, so that verification need not.

    Returns:
        The residual stream at exit k (1, S + d, D); d drafts (1,); the processed probabilities
        (1, V) that each was drawn from, none when greedy.
    """
    states: list[Tensor] = []
    drafts: list[Tensor] = []
    draft_p: list[Tensor] = []
    rest = phases.draft_only
    while True:
        work.read(start, ids)
        tokens = work.tokens(start, ids.shape[1])
        h = model(ids, tokens, phases.shared)[phases.shared.exits[-1]]  # (1, S, D)
        states.append(h)
        if len(drafts) == num_drafts:
            return torch.cat(states, dim=1), drafts, draft_p
        start += ids.shape[1]
        if rest.visits:
            h = model(h, tokens, rest)[rest.exits[-1]]  # (1, S, D)
        logits = work.change(model.unembed(h[:, -1]), start)  # (1, V)
        token, p = choose(logits, sampling, work.generator)  # (1,)
        drafts.append(token)
        if confidence and float(logits.softmax(-1)[0, token]) < confidence:
            num_drafts = len(drafts)
        if p is not None:
            draft_p.append(p)
        ids = token[None]  # (1, 1)
