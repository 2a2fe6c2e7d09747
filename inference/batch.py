"""Many prompts at once, plainly or by self-speculation, each row at its own pace.

Rows of a batch have prompts of different lengths and accept different numbers of drafts; a row that
is finished leaves, and the next prompt takes its place. What comes out for a prompt is what comes
out for it alone: rows see nothing of each other, and each draws from a generator of its own.

Letters: R rows in flight, S positions, T longest sequence, L layers, E exit layer.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from inference.batch_round import BatchWork, Row, play_round, read_prompt
from inference.early_exit import check_exit
from inference.ending import Ending
from inference.generation import Generation, Round, Settings
from inference.pace import Alone, Pace, Plans
from inference.process import make_processing
from inference.row_cache import RowCache
from inference.workspace import check_prompt
from models.llama import Llama
from models.plan import full
from models.rope import rotary_angles


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    """How many prompts are in flight, and by which layers they are continued."""

    rows: int = 8
    """Most prompts at once."""
    exit_layer: int | None = None
    """1..L-1: so many layers draft, the others verify; None decodes plainly, by all layers."""
    num_speculations: int = 0
    """Most drafts of a round; needed with an exit."""
    is_verified: bool = True
    """False drafts nothing and takes the exit's own tokens: early exit, not lossless."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")
        if self.exit_layer is None and not self.is_verified:
            raise ValueError("is_verified=False needs an exit_layer: all layers verify themselves")
        is_drafting = self.exit_layer is not None and self.is_verified
        if is_drafting and self.num_speculations < 1:
            raise ValueError(
                f"num_speculations must be at least 1 with exit_layer={self.exit_layer}, got "
                f"{self.num_speculations}; for the exit's own tokens set is_verified=False"
            )
        if not is_drafting and self.num_speculations:
            raise ValueError(
                f"num_speculations={self.num_speculations} would be ignored: nothing is drafted "
                f"with exit_layer={self.exit_layer}, is_verified={self.is_verified}"
            )


def decode_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    batch: BatchSettings,
    settings: Settings,
    seeds: Sequence[int] | None = None,
    pace: Pace | None = None,
) -> Iterator[tuple[int, Round]]:
    """Yield the rounds of all prompts as they happen, each with the index of its prompt.

    Greedy tokens of a prompt equal those of decoding it alone, by the same layers. Sampled ones
    have the same distribution, and depend on the prompt and its seed only, not on its company. A
    prompt is read by its row alone, in its first round; a round's seconds are those since the
    row's last one, whatever happened meanwhile.

    Args:
        model: in any dtype; other batch shapes round differently, so that in half precision a
            near-tie may fall the other way.
        prompts: token ids, of any lengths.
        batch: how many at once, and by which layers.
        settings: for every prompt.
        seeds: one for each prompt; `settings.seed` for all of them unless given.
        pace: keeps ranks in step that have other prompts, and share the weights; nobody else unless
            given.

    Raises:
        ValueError: if the exit is not in 1..L-1, a prompt does not fit, or there are not as many
            seeds as prompts.
    """
    rounds = _checked(model, prompts, batch, settings, seeds, pace)
    return ((index, round_) for index, round_, _ in rounds)


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    batch: BatchSettings,
    settings: Settings,
    seeds: Sequence[int] | None = None,
    pace: Pace | None = None,
) -> Iterator[Generation]:
    """Return the generations in the order of the prompts, each as soon as it can be told.

    Arguments and errors are those of `decode_batch`.
    """
    return _in_order(_checked(model, prompts, batch, settings, seeds, pace))


def _in_order(events: Iterator[tuple[int, Round, bool]]) -> Iterator[Generation]:
    rounds, finished, due = dict[int, list[Round]](), set[int](), 0
    for index, round_, is_over in events:
        rounds.setdefault(index, []).append(round_)
        if is_over:
            finished.add(index)
        while due in finished:
            yield Generation(tuple(rounds.pop(due)))
            due += 1


def _checked(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    batch: BatchSettings,
    settings: Settings,
    seeds: Sequence[int] | None,
    pace: Pace | None,
) -> Iterator[tuple[int, Round, bool]]:
    """Refuse what cannot be done before anything is; then see `_play`."""
    plans = _plans(model, batch)
    for prompt_ids in prompts:
        check_prompt(model.config, prompt_ids, settings.max_new_tokens)
    if seeds is None:
        seeds = [settings.seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts: give one each")
    return _play(model, prompts, plans, batch, settings, seeds, pace or Alone(model))


def _plans(model: Llama, batch: BatchSettings) -> Plans:
    """Return what runs a token at a time, and what verifies."""
    depth, exit_layer = model.config.num_hidden_layers, batch.exit_layer
    if exit_layer is None:
        return full(depth), None
    check_exit(model, exit_layer)
    return full(exit_layer), full(depth, start=exit_layer) if batch.is_verified else None


@torch.inference_mode()
def _play(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    plans: Plans,
    batch: BatchSettings,
    settings: Settings,
    seeds: Sequence[int],
    pace: Pace,
) -> Iterator[tuple[int, Round, bool]]:
    """Yield index, round, and whether it is the prompt's last."""
    waiting, rows = deque(range(len(prompts))), list[Row]()
    work = _prepare(model, prompts, plans, batch, settings, pace) if prompts else None
    while True:
        coming = [waiting.popleft() for _ in range(min(len(waiting), batch.rows - len(rows)))]
        lefts = [*(row.left for row in rows), *(settings.max_new_tokens for _ in coming)]
        reads = sum(len(prompts[index]) > 1 for index in coming)
        steps = max((min(batch.num_speculations, left - 1) + 1 for left in lefts), default=0)
        if not pace.begin(plans, reads=reads, steps=steps):
            return
        events = list[tuple[int, Round, bool]]()
        with pace.whole_round():
            if work is not None and steps:
                for index in coming:
                    rows.append(_admit(work, index, prompts[index], seeds[index], len(rows)))
                pace.next_phase()
                for row, (tokens, drafted) in zip(rows, play_round(work, rows), strict=True):
                    events.append((row.index, row.take(tokens, drafted), not row.left))
                _leave(work.cache, rows)
        yield from events
        now = perf_counter()
        for row in rows:
            row.since = now


def _prepare(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    plans: Plans,
    batch: BatchSettings,
    settings: Settings,
    pace: Pace,
) -> BatchWork:
    """Return buffers for the longest prompt and, beyond it, drafts that only fill a batch."""
    weight = model.model.embed_tokens.weight
    dtype, device = weight.dtype, weight.device
    longest = max(map(len, prompts)) + settings.max_new_tokens - 1
    max_length = longest + min(batch.num_speculations, settings.max_new_tokens)  # T
    cos, sin = rotary_angles(torch.arange(max_length, device=device)[None], model.config)
    cache = RowCache(
        model.config,
        layers=sorted({visit.layer for plan in plans if plan for visit in plan.visits}),
        rows=min(batch.rows, len(prompts)),
        max_length=max_length,
        dtype=dtype,
        device=device,
    )
    first, rest = plans
    num_speculations, cos, sin = batch.num_speculations, cos.to(dtype), sin.to(dtype)
    return BatchWork(model, settings, first, rest, num_speculations, cache, cos, sin, pace)


def _admit(work: BatchWork, index: int, prompt_ids: Sequence[int], seed: int, place: int) -> Row:
    """Read a prompt into a place of the batch; its last token is left to the first round."""
    since, settings, device = perf_counter(), work.settings, work.cos.device
    start = len(prompt_ids) - 1
    processing = make_processing(
        work.model.config, settings, prompt_length=len(prompt_ids), device=device
    )
    if start:
        ids = torch.tensor([list(prompt_ids[:-1])], device=device)  # (1, S)
        read_prompt(work, ids, place)
        if processing is not None:
            processing.read(0, ids)
    return Row(
        index=index,
        last=prompt_ids[-1],
        start=start,
        left=settings.max_new_tokens,
        ending=Ending(settings, prompt_ids),
        generator=torch.Generator().manual_seed(seed),
        processing=processing,
        since=since,
    )


def _leave(cache: RowCache, rows: list[Row]) -> None:
    """Drop finished rows; the last row moves into the place of each, so that none is empty."""
    place = 0
    while place < len(rows):
        if rows[-1].left == 0:
            rows.pop()
        elif rows[place].left == 0:
            rows[place] = rows.pop()
            cache.move(len(rows), place, rows[place].start)
        else:
            place += 1
