"""One round of self-speculation: draft with a part of the model, verify with all of it.

Letters: S positions, D width, V vocabulary, k shared visits, d drafts of a round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.costs import ACCEPT, DRAFT, LAYER
from inference.decoding_plan import Phases
from inference.sample import SamplingConfig, accept, choose
from inference.workspace import Workspace
from models.llama import Llama
from parallel.share import share, share_numbers

Lap = Callable[[str, int, int], None]
"""Told what ran since the last call, on how many positions, how many times; see `Laps.lap`."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round leaves behind."""

    tokens: list[int]
    """Accepted drafts, then one of the model's own."""
    drafted: list[int]
    """All d drafts."""
    last: Tensor
    """(1,) the last token, which no layer has seen."""
    states: dict[int, Tensor]
    """(1, S + d, D) by exit, of those that the phases ask for; the last one is the model's."""


def speculate(
    model: Llama,
    ids: Tensor,
    phases: Phases,
    work: Workspace,
    start: int,
    num_drafts: int,
    sampling: SamplingConfig,
    *,
    confidence: float = 0.0,
    lap: Lap | None = None,
) -> Outcome:
    """Go on from the uncached tokens ids (1, S), which follow `start` cached ones.

    Drafts at most `num_drafts` tokens, ending with the first whose probability is below
    `confidence`; none at all makes it a plain step. The cache is left with every position whose
    token is known but the last.
    """
    states, drafts, draft_p = _draft(
        model, ids, phases, work, start, num_drafts, sampling, confidence, lap
    )
    k, depth = phases.shared.exits[-1], phases.verify.exits[-1]
    work.cache.crop(start, first_layer=k)
    count = states[k].shape[1]  # S + d
    if phases.verify.visits:
        states |= model(states[k], work.tokens(start, count), phases.verify)
        if lap:
            lap(LAYER, count, len(phases.verify.visits))
    logits = model.unembed(states[depth][0, -len(drafts) - 1 :])  # (d + 1, V)
    logits = work.change(logits, start + count)
    tokens, drafted, last = accept(logits, drafts, draft_p, sampling, work.generator)
    tokens, drafted, last = _agreed(model, tokens, drafted, last)
    if lap:
        lap(ACCEPT, len(drafts) + 1 if ids.shape[1] == 1 else count, 1)
    work.cache.crop(start + ids.shape[1] + len(tokens) - 1)
    return Outcome(tokens, drafted, last, states)


def _agreed(
    model: Llama, tokens: list[int], drafted: list[int], last: Tensor
) -> tuple[list[int], list[int], Tensor]:
    """Return what rank 0 has accepted, if ranks share the model; `last` (1,) is on the device."""
    numbers = [len(tokens) - 1, tokens[-1], *drafted]
    kept, final, *drafted = share_numbers(model, numbers)
    return [*drafted[:kept], final], drafted, share(model, last)


def _draft(
    model: Llama,
    ids: Tensor,
    phases: Phases,
    work: Workspace,
    start: int,
    num_drafts: int,
    sampling: SamplingConfig,
    confidence: float,
    lap: Lap | None,
) -> tuple[dict[int, Tensor], list[Tensor], list[Tensor]]:
    """Draft as `speculate` says.

    The last draft goes through the shared visits too, so that verification need not.

    Returns:
        The residual streams (1, S + d, D) by exit; d drafts (1,); the processed probabilities
        (1, V) that each was drawn from, none when greedy.
    """
    passes: list[dict[int, Tensor]] = []
    drafts: list[Tensor] = []
    draft_p: list[Tensor] = []
    rest, k = phases.draft_only, phases.shared.exits[-1]
    while True:
        count = ids.shape[1]  # S, then 1
        work.read(start, ids)
        tokens = work.tokens(start, count)
        passes.append(model(ids, tokens, phases.shared))
        h = passes[-1][k]  # (1, S, D)
        if lap:
            lap(LAYER, count, k)
        if len(drafts) == num_drafts:
            states = passes[0]
            if len(passes) > 1:
                states = {e: torch.cat([each[e] for each in passes], dim=1) for e in states}
            return states, drafts, draft_p
        start += count
        if rest.visits:
            h = model(h, tokens, rest)[rest.exits[-1]]  # (1, S, D)
        logits = work.change(model.unembed(h[:, -1]), start)  # (1, V)
        token, p = choose(logits, sampling, work.generator)  # (1,)
        drafts.append(token)
        if confidence:
            (found,) = share_numbers(model, [float(logits.softmax(-1)[0, token])])
            num_drafts = len(drafts) if found < confidence else num_drafts
        if p is not None:
            draft_p.append(p)
        ids = token[None]  # (1, 1)
        if lap:
            lap(DRAFT, count, 1)
