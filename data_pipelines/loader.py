"""Batches as a pure function of (seed, step, global microbatch): nothing to save but the step.

Letters: B rows, S positions, N sequences of a split.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.pack import Int32s

T = TypeVar("T")

IGNORED = -100
"""The label of a position that is not predicted."""
CLOSE_SECONDS = 3.0
"""How long a consumer that ends early waits for the item that is being made."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One microbatch, on the CPU."""

    ids: Tensor
    """(B, S) int64 token ids."""
    labels: Tensor
    """(B, S) int64: the next token, or -100 where it is part of a prompt, or begins another
    document and may not see this one."""
    positions: Tensor
    """(1, S) int64 if attention crosses documents, else (B, S), from 0 in each document."""
    documents: Tensor | None
    """(B, S) int64 document ids, never falling along a row; None if attention crosses documents."""


class Rows(Protocol):
    """Sequences that are there to be taken in any order: a `Split`, or several."""

    def __len__(self) -> int: ...

    def rows(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return token ids and document ids, each (B, S + 1) int64, of the sequences (B,)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The packed sequences of one split, in memory-mapped pieces."""

    pieces: tuple[tuple[Int32s, Int32s], ...]
    """Token ids and document ids, each (n, S + 1), in order."""
    ends: NDArray[np.int64]
    """How many sequences there are up to the end of each piece."""

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def rows(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return token ids and document ids, each (B, S + 1) int64, of the sequences (B,)."""
        pieces = np.searchsorted(self.ends, indices, side="right")
        starts = np.concatenate([[0], self.ends])[pieces]
        places = list(zip(pieces, indices - starts, strict=True))
        ids = np.stack([self.pieces[piece][0][row] for piece, row in places])
        documents = np.stack([self.pieces[piece][1][row] for piece, row in places])
        return torch.from_numpy(ids).long(), torch.from_numpy(documents).long()


def open_split(folder: str | Path, split: str) -> Split:
    """Return a split (train or valid) of the folder that `prepare` made, memory-mapped.

    Raises:
        ValueError: if the folder has no such split.
    """
    path = Path(folder) / f"{split}.arrow"
    if not path.is_file():
        raise ValueError(f"{folder} has no {split}.arrow: give a folder that `prepare` returned")
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    pieces = tuple((_view(batch["ids"]), _view(batch["documents"])) for batch in batches)
    return Split(pieces, np.cumsum([len(ids) for ids, _ in pieces], dtype=np.int64))


def _view(column: pa.FixedSizeListArray) -> Int32s:
    """Return the column as (n, S + 1), without a copy."""
    view: Int32s = column.values.to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)
    return view


class Loader:
    """Cuts a split into microbatches.

    Training walks through a new seeded permutation of the split in every epoch. Microbatch `index`
    of step `step` has the same sequences whatever rank asks for it, so a run goes on exactly where
    it stopped, also on another number of ranks with the same global batch.
    """

    def __init__(
        self,
        split: Rows,
        *,
        seed: int,
        micro_batch_size: int,
        num_microbatches: int,
        documents: bool,
    ) -> None:
        """Keep what decides every batch; nothing is read yet.

        Args:
            split: the sequences.
            seed: decides the permutations.
            micro_batch_size: rows B of a microbatch.
            num_microbatches: microbatches of one step over all ranks.
            documents: whether attention stays inside documents.

        Raises:
            ValueError: if the split has no sequence.
        """
        if not len(split):
            raise ValueError("the split has no sequence: set data.valid_fraction above 0")
        self.split = split
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.num_microbatches = num_microbatches
        self.documents = documents

    def microbatch(self, step: int, index: int) -> Batch:
        """Return a training microbatch of B rows: a pure function of its arguments.

        Args:
            step: optimiser step, from 0.
            index: global microbatch, from 0 to num_microbatches - 1.
        """
        return make_batch(*self.rows(step, index), separate=self.documents)

    def rows(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the token ids and document ids of a training microbatch, each (B, S + 1)."""
        first = (step * self.num_microbatches + index) * self.micro_batch_size
        samples = np.arange(first, first + self.micro_batch_size)
        epochs, places = np.divmod(samples, len(self.split))
        indices = [
            _permutation(self.seed, int(epoch), len(self.split))[place]
            for epoch, place in zip(epochs, places, strict=True)
        ]
        return self.split.rows(np.asarray(indices))

    def state(self, step: int) -> dict[str, Any]:
        """Return what a resumed run needs to know of the data at a step: nothing."""
        return {}

    @property
    def num_sequential(self) -> int:
        """How many batches `sequential` has."""
        return -(-len(self.split) // self.micro_batch_size)

    def sequential(self, index: int) -> Batch:
        """Return batch `index` of the split in its own order, for validation.

        Every sequence is in one of the `num_sequential` batches; the last may have fewer rows.
        """
        first = index * self.micro_batch_size
        rows = np.arange(first, min(first + self.micro_batch_size, len(self.split)))
        return make_batch(*self.split.rows(rows), separate=self.documents)


def make_batch(ids: Tensor, documents: Tensor, *, separate: bool) -> Batch:
    """Return sequences as a model takes them.

    Args:
        ids: (B, S + 1) int64 token ids, ~id for a token that is not to be predicted.
        documents: (B, S + 1) int64 document ids, never falling along a row.
        separate: whether attention stays inside documents.
    """
    is_read_only = ids < 0  # (B, S + 1)
    ids = torch.where(is_read_only, ~ids, ids)
    labels = ids[:, 1:].masked_fill(is_read_only[:, 1:], IGNORED)  # (B, S)
    arange = torch.arange(labels.shape[1])[None]  # (1, S)
    if not separate:
        return Batch(ids[:, :-1].contiguous(), labels, arange, None)
    is_border = documents[:, 1:] != documents[:, :-1]  # (B, S)
    labels = labels.masked_fill(is_border, IGNORED)
    is_start = torch.nn.functional.pad(is_border[:, :-1], (1, 0))  # (B, S)
    starts = torch.where(is_start, arange, 0).cummax(dim=1).values  # (B, S)
    documents = documents[:, :-1].contiguous()
    return Batch(ids[:, :-1].contiguous(), labels, arange - starts, documents)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the order (N,) of an epoch; kept, since a step asks for the same one many times."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def prefetch(iterable: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield the items of an iterable, up to `depth` of them made ahead in a background thread.

    What the iterable raises is raised here. Closing the iterator early ends the thread after the
    item it is making, and waits for that, but not for long: a thread that is still in C++ when the
    interpreter exits aborts the process ("terminate called without an active exception").
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()
    arguments = (iter(iterable), made, closed)
    thread = threading.Thread(target=_produce, args=arguments, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast(T, item)
    finally:
        closed.set()
        thread.join(CLOSE_SECONDS)


def _produce(
    iterator: Iterator[T],
    made: "queue.Queue[tuple[T | None, BaseException | None]]",
    closed: threading.Event,
) -> None:
    error: BaseException | None = None
    while error is None and not closed.is_set():
        item = None
        try:
            item = next(iterator)
        except BaseException as raised:  # whatever it is, the consumer has to see it
            error = raised
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                break
            except queue.Full:
                continue
