"""One round of a batch: draft together, verify together, accept row by row.

Letters: R rows in flight, S positions, T longest sequence, D width, V vocabulary, d drafts of the
row that drafts most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from inference.batch_accept import accept_rows, choose_rows
from inference.ending import Ending, end_round
from inference.generation import Round, Settings
from inference.pace import Pace
from inference.process import Processing
from inference.row_cache import RowCache, row_tokens
from inference.sample import in_precision
from models.llama import Llama
from models.plan import LayerPlan
from parallel.share import share


@dataclass(slots=True)
class Row:
    """A prompt in flight."""

    index: int
    """Of the prompt."""
    last: int
    """The one token that no layer has seen."""
    start: int
    """Its position: so many tokens are cached."""
    left: int
    """So many tokens may come yet; 0 once the sequence is over."""
    ending: Ending
    generator: torch.Generator
    """On the host, so that a seed means the same draws on every device."""
    processing: Processing | None
    since: float
    """When the clock of its next round began."""

    def take(self, tokens: list[int], drafted: list[int]) -> Round:
        """Return the round that these tokens make, and go on from the last of them."""
        round_ = end_round(self.ending, tokens, drafted, perf_counter() - self.since)
        self.last, self.start = tokens[-1], self.start + len(tokens)
        self.left = 0 if self.ending.is_over else self.left - len(tokens)
        return round_


@dataclass(frozen=True, slots=True, eq=False)
class BatchWork:
    """What all rounds share."""

    model: Llama
    settings: Settings
    first: LayerPlan
    """What drafts, a token at a time; without `rest` it has the last word."""
    rest: LayerPlan | None
    """What goes on from there to verify."""
    num_speculations: int
    cache: RowCache
    cos: Tensor
    """(1, T, E), in the model's dtype."""
    sin: Tensor
    """As cos."""
    pace: Pace
    """Runs every pass."""

    def run(self, plan: LayerPlan, x: Tensor, start: Tensor, width: int, place: int = 0) -> Tensor:
        """Run a plan on consecutive positions of R rows.

        Args:
            plan: its last exit is returned.
            x: ids (R, S), or residual streams (R, S, D).
            start: (R,), each row's first position.
            width: no position from here on is looked at.
            place: of the first row in the cache.

        Returns:
            (R, S, D).
        """
        steps = torch.arange(x.shape[1], device=x.device)
        writer = self.cache.writer(start[:, None] + steps, first=place, width=width)
        tokens = row_tokens(self.cos, self.sin, writer)
        return self.pace.run(x, tokens, plan)


def read_prompt(work: BatchWork, ids: Tensor, place: int) -> None:
    """Run all layers on a prompt but its last token, ids (1, S), for the row at a place alone."""
    start = ids.new_zeros(1)
    h = work.run(work.first, ids, start, ids.shape[1], place)  # (1, S, D)
    if work.rest is not None:
        work.run(work.rest, h, start, ids.shape[1], place)


def play_round(work: BatchWork, rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Return for each row its new tokens, and the drafts that were in question.

    The host waits for the device once, at the end.
    """
    counts = [min(work.num_speculations, row.left - 1) for row in rows]
    uniform = None if work.settings.sampling.is_greedy else _draws(rows, counts).to(work.cos.device)
    state = [[row.start, row.last, count] for row, count in zip(rows, counts, strict=True)]
    start, last, limits = torch.tensor(state, device=work.cos.device).unbind(1)  # (R,)
    h, drafts, draft_p = _draft(work, rows, counts, start, last, uniform)  # (R, d + 1, D)
    work.pace.next_phase()
    num_drafts = drafts.shape[1]
    if work.rest is not None:
        h = work.run(work.rest, h, start, _width(rows) + num_drafts)
    logits = _changed(rows, work.model.unembed(h), [(0, count + 1) for count in counts])
    kept, after = accept_rows(
        logits,
        drafts,
        draft_p,
        limits,
        work.settings.sampling,
        None if uniform is None else uniform[:, num_drafts:],
    )
    numbers = share(work.model, torch.cat((kept[:, None], after[:, None], drafts), dim=1)).tolist()
    return [
        ([*drafted[:kept], last], drafted[:count])
        for count, (kept, last, *drafted) in zip(counts, numbers, strict=True)
    ]


def _draft(
    work: BatchWork,
    rows: Sequence[Row],
    counts: Sequence[int],
    start: Tensor,
    last: Tensor,
    uniform: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Draft as many tokens as the row that asks for most, after `last` (R,) at `start` (R,).

    Returns:
        The residual stream where the first plan ends (R, d + 1, D); drafts (R, d); d times the
        probabilities (R, V) that they were drawn from, none when greedy.
    """
    states, ids, draft_p = list[Tensor](), [last], list[Tensor]()
    for step in range(max(counts) + 1):
        _note(rows, counts, ids[-1], step)
        states.append(work.run(work.first, ids[-1][:, None], start + step, _width(rows) + step))
        if step == max(counts):
            break
        logits = work.model.unembed(states[-1])  # (R, 1, V)
        logits = _changed(rows, logits, [(step, int(step < count)) for count in counts])[:, 0]
        here = None if uniform is None else uniform[:, step : step + 1]
        token, p = choose_rows(logits, work.settings.sampling, here)  # (R,)
        ids.append(token)
        if p is not None:
            draft_p.append(p)
    return torch.cat(states, dim=1), torch.stack(ids, dim=1)[:, 1:], draft_p


def _width(rows: Sequence[Row]) -> int:
    return max(row.start for row in rows) + 1


def _draws(rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
    """Return each row's random numbers of a round (R, 2d + 1): drafts, acceptance, last token.

    A row with fewer drafts draws fewer numbers, whatever the others do; the gaps hold zeros.
    """
    most = max(counts)
    draws = torch.zeros(len(rows), 2 * most + 1, dtype=torch.float64)
    for row, count, places in zip(rows, counts, draws.unbind(), strict=True):
        own = torch.rand(2 * count + 1, dtype=torch.float64, generator=row.generator)
        places[:count] = own[:count]
        places[most : most + count] = own[count:-1]
        places[-1] = own[-1]
    return draws


def _note(rows: Sequence[Row], counts: Sequence[int], ids: Tensor, step: int) -> None:
    """Let each row's processing know the token of ids (R,) that it reads at this step."""
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if row.processing is not None and step <= count:
            row.processing.read(row.start + step, ids[place].view(1, 1))


def _changed(rows: Sequence[Row], logits: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return logits (R, S, V), processed where a row needs them.

    Args:
        rows: R rows.
        logits: (R, S, V).
        spans: for each row, how many tokens precede its last one's first logits in this round, and
            how many of the S logits the row needs.
    """
    if all(row.processing is None for row in rows):
        return logits
    changed = in_precision(logits).clone()
    for place, (row, (step, count)) in enumerate(zip(rows, spans, strict=True)):
        if row.processing is not None and count:
            end = row.start + step + count
            changed[place, :count] = row.processing.change(logits[place, :count], end)
    return changed
