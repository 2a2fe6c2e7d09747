"""Batches of several sources, prepared or streamed: the same whatever the number of ranks.

Sample n of a run (its microbatches counted through, over all ranks and steps) is of the source that
`Mix` says, and the next one of that source: of a prepared one in the order of a new permutation
each epoch, which is a function of the count; of a streamed one from the lane of the microbatch.
Lanes are dealt to the microbatches of a step in turn, so a rank reads only those of its own
microbatches, and another number of ranks deals the same lanes out otherwise.

Letters: B rows, S positions.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.loader import Batch, Rows, make_batch
from data_pipelines.mix import Mix
from data_pipelines.stream import Sequence as Streamed
from data_pipelines.stream import State, read_state

_STATES_KEPT = 16
"""Steps whose states are remembered: the loop saves a step while the next ones are made ahead."""

OpenLane = Callable[[int, State], Iterator[Streamed]]
"""Gives the sequences of a lane (from 0) from a state on."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One source of a mixture: `rows` if it is prepared, `lane` if it is streamed."""

    name: str
    share: float
    """Of the sequences."""
    rows: Rows | None = None
    lane: OpenLane | None = None


class MixtureLoader:
    """Cuts a mixture of sources into microbatches; a lone streamed source is one of one.

    What is made ahead in another thread and what is asked of the state are kept apart by a lock.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        micro_batch_size: int,
        num_microbatches: int,
        lanes: int,
        documents: bool,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep what decides every batch; a stream is opened when it is first read.

        Args:
            sources: in the order of their names.
            seed: decides the mixture and the permutations.
            micro_batch_size: rows B of a microbatch.
            num_microbatches: microbatches of one step over all ranks.
            lanes: a divisor of it.
            documents: whether attention stays inside documents.
            state: what all ranks' `state` gave, merged; None: the beginning.

        Raises:
            ValueError: if the state is that of another number of lanes.
        """
        self.sources = tuple(sources)
        self.mix = Mix.of(tuple(source.share for source in sources), seed)
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.num_microbatches = num_microbatches
        self.num_lanes = lanes
        self.documents = documents
        self._lock = threading.Lock()
        self._orders: dict[tuple[str, int], NDArray[np.int64]] = {}
        self._lanes: dict[int, _Lane] = {}
        self._begin = dict(state or {})
        if self._begin and self._begin["num_lanes"] != lanes:
            raise ValueError(
                f"data.streaming.lanes is {lanes}, but the checkpoint's streams have "
                f"{self._begin['num_lanes']}: set that"
            )

    def microbatch(self, step: int, index: int) -> Batch:
        """Return a training microbatch of B rows: a function of its arguments.

        Steps in ascending order are cheap; one that is passed reads its streams from the beginning.

        Args:
            step: optimiser step, from 0.
            index: global microbatch, from 0 to num_microbatches - 1.
        """
        return make_batch(*self.rows(step, index), separate=self.documents)

    def rows(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the token ids and document ids of a training microbatch, each (B, S + 1)."""
        chosen = self.sources_of(step, index)
        taken = {n: self._prepared(n, step, index, chosen.count(n)) for n in set(chosen)}
        with self._lock:
            for number, sequence in self._streamed(step, index):
                pair = torch.from_numpy(sequence.ids), torch.from_numpy(sequence.documents)
                taken[number].append(pair)
        left = {number: iter(pairs) for number, pairs in taken.items()}
        ids, documents = zip(*(next(left[number]) for number in chosen), strict=True)
        return torch.stack(ids).long(), torch.stack(documents).long()  # (B, S + 1)

    def sources_of(self, step: int, index: int) -> list[int]:
        """Return which source each of the B rows of a microbatch is from."""
        first = (step * self.num_microbatches + index) * self.micro_batch_size
        return [self.mix.source(first + row) for row in range(self.micro_batch_size)]

    def epoch(self, number: int, step: int) -> float | None:
        """Return how often a prepared source has been seen before a step; None: it is streamed."""
        rows = self.sources[number].rows
        if rows is None:
            return None
        first = step * self.num_microbatches * self.micro_batch_size
        return self.mix.count_before(first, number) / len(rows)

    def _prepared(
        self, number: int, step: int, index: int, count: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the (S + 1,) ids and documents of so many sequences; none of a streamed source."""
        name, rows = self.sources[number].name, self.sources[number].rows
        if rows is None:
            return []
        first = (step * self.num_microbatches + index) * self.micro_batch_size
        before = self.mix.count_before(first, number)
        epochs, places = np.divmod(np.arange(before, before + count), len(rows))
        indices = [
            self._order(name, int(epoch), len(rows))[place]
            for epoch, place in zip(epochs, places, strict=True)
        ]
        return list(zip(*rows.rows(np.asarray(indices)), strict=True))

    def _order(self, name: str, epoch: int, size: int) -> NDArray[np.int64]:
        """Return the order (N,) of a source's epoch; this one and the last are kept."""
        if (name, epoch) not in self._orders:
            self._orders.pop((name, epoch - 2), None)
            draw = np.random.default_rng((source_seed(self.seed, name), epoch))
            self._orders[name, epoch] = draw.permutation(size)
        return self._orders[name, epoch]

    def _streamed(self, step: int, index: int) -> list[tuple[int, Streamed]]:
        """Return the sequences of a microbatch that are streamed, each after its source."""
        if all(source.lane is None for source in self.sources):
            return []
        begin, at = step * self._per_step, step * self._per_step + index // self.num_lanes
        number = index % self.num_lanes
        lane = self._lanes.get(number)
        if lane is None or at < lane.at:
            lane = self._open(number, begin)
        lane.go_to(begin)
        lane.note(begin)
        lane.go_to(at)
        return lane.advance()

    @property
    def _per_step(self) -> int:
        """Microbatches of a lane in one step."""
        return self.num_microbatches // self.num_lanes

    def _open(self, number: int, at: int) -> "_Lane":
        """Open a lane, or open it again, at the last known state not after a microbatch."""
        known: dict[int, Mapping[str, list[int]]] = {0: {}}
        if self._begin:
            known[self._begin["step"] * self._per_step] = self._begin["lanes"][str(number)]
        if number in self._lanes:
            known |= self._lanes[number].noted
        start = max(each for each in known if each <= at)
        self._lanes[number] = _Lane(self, number, start, known[start])
        return self._lanes[number]

    def state(self, step: int) -> dict[str, Any]:
        """Return, as JSON data, where this rank's streams are at the beginning of a step.

        The states of all ranks are merged by `merge_states`. Empty if nothing is streamed.
        """
        begin = step * self._per_step
        with self._lock:
            for lane in self._lanes.values():
                if begin not in lane.noted:
                    lane.go_to(begin)
                    lane.note(begin)
            lanes = {str(n): dict(lane.noted[begin]) for n, lane in sorted(self._lanes.items())}
        return {"step": step, "num_lanes": self.num_lanes, "lanes": lanes} if lanes else {}


class _Lane:
    """The streams of one lane, one for each streamed source, at the same microbatch."""

    def __init__(
        self, loader: MixtureLoader, number: int, at: int, states: Mapping[str, list[int]]
    ) -> None:
        self._loader, self._number = loader, number
        self.at = at
        """Microbatches of this lane that are taken."""
        self.noted: dict[int, dict[str, list[int]]] = {}
        """States by the microbatch that comes after them."""
        self._states: dict[int, State] = {}
        self._streams: dict[int, Iterator[Streamed]] = {}
        for index, source in enumerate(loader.sources):
            if source.lane is not None:
                state = read_state(states[source.name]) if source.name in states else State()
                self._states[index] = state
                self._streams[index] = source.lane(number, state)

    def go_to(self, at: int) -> None:
        """Pass microbatches that other ranks take, or nobody."""
        while self.at < at:
            self.advance()

    def note(self, at: int) -> None:
        """Remember the state if this is where the lane is."""
        if self.at == at:
            names = [source.name for source in self._loader.sources]
            self.noted[at] = {names[i]: state.as_json() for i, state in self._states.items()}
            for old in sorted(self.noted)[:-_STATES_KEPT]:
                del self.noted[old]

    def advance(self) -> list[tuple[int, Streamed]]:
        """Return the sequences of the next microbatch, each after its source."""
        lanes = self._loader.num_lanes
        step, turn = divmod(self.at, self._loader.num_microbatches // lanes)
        chosen = self._loader.sources_of(step, turn * lanes + self._number)
        taken = [(i, next(self._streams[i])) for i in chosen if i in self._streams]
        self._states |= {i: sequence.after for i, sequence in taken}
        self.at += 1
        return taken


def source_seed(seed: int, name: str) -> int:
    """Return a seed for what is drawn for one source."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of a run from those of its ranks at the same step; empty if they are."""
    lanes = {number: lane for state in states for number, lane in state.get("lanes", {}).items()}
    return {**states[0], "lanes": lanes} if lanes else {}
