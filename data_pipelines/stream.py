"""One lane of a streamed source: an endless iterator of (sequence, state), state being JSON.

A lane's documents are its own: whole files where there are as many files as lanes, else every so
manyth row of a file. Each epoch takes its files in a new order, and shuffles rows that are read
together. So what comes after a place is a function of the place alone, and to go on there these
rows are read again; no buffer has to be saved.

Letters: S positions, T tokens, K documents.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from data_pipelines.pack import Int32s
from data_pipelines.read_ahead import Submit, read_ahead
from data_pipelines.stream_source import StreamSource
from data_pipelines.whole import pack_whole

Encode = Callable[[str], list[int]]
"""Gives a document's ids, none if it is held out or there is nothing to learn from it."""


class Place(NamedTuple):
    """Where documents begin that are tokenised together."""

    epoch: int = 0
    file: int = 0
    """In the order of the epoch."""
    row: int = 0
    """Of the file: where the rows begin that were read, and shuffled, together."""
    document: int = 0
    """Of these rows, as they are shuffled."""


class State(NamedTuple):
    """Where a sequence begins."""

    place: Place = Place()
    passed: int = 0
    """Tokens of the block before it; of a block of samples, sequences before it."""

    def as_json(self) -> list[int]:
        """Return five numbers."""
        return [*self.place, self.passed]


def read_state(values: list[int]) -> State:
    """Return the state that `as_json` gave."""
    return State(Place(*values[:4]), values[4])


class Sequence(NamedTuple):
    """A sequence, and where the one after it begins."""

    ids: Int32s
    """(S + 1,); ~id for a token that is not to be predicted."""
    documents: Int32s
    """(S + 1,) from 0."""
    after: State


class Block(NamedTuple):
    """Documents that were tokenised together."""

    place: Place
    ids: Int32s
    """(T,) joined."""
    lengths: Int32s
    """(K,) of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Which documents of a source are taken, and in what order."""

    source: StreamSource
    encode: Encode
    number: int
    """From 0."""
    of: int
    """How many lanes deal the source out."""
    seed: int
    at_once: int
    """Documents that are read and shuffled together."""
    block: int = 16
    """Documents that are tokenised together."""

    @property
    def sharers(self) -> int:
        """How many lanes share each of this one's files."""
        files = min(self.source.num_shards, self.of)
        return len(range(self.number % files, self.of, files))

    def order(self, epoch: int) -> list[int]:
        """Return this lane's files in the order of an epoch."""
        files = self.source.num_shards
        mine = range(self.number % files, files, min(self.of, files))
        return [mine[i] for i in self._draw(epoch, 0).permutation(len(mine))]

    def blocks(self, start: Place) -> Iterator[Block]:
        """Yield the blocks from a place on, without end.

        Raises:
            ValueError: if there is nothing to train on in a whole epoch.
        """
        place = start
        while True:
            tokens = 0
            for file, shard in enumerate(self.order(place.epoch)):
                if file < place.file:
                    continue
                begin = place if file == place.file else Place(place.epoch, file)
                for block in self._of_shard(begin, shard):
                    tokens += len(block.ids)
                    yield block
            if not tokens and place == Place(place.epoch):
                raise ValueError(
                    f"{self.source.name}: lane {self.number} of {self.of} has no document to train "
                    "on: lower data.streaming.lanes, or give more documents; of prompts with "
                    "answers, those whose prompt fills data.seq_len do not count"
                )
            place = Place(place.epoch + 1)

    def _of_shard(self, place: Place, shard: int) -> Iterator[Block]:
        sharers, row, begin = self.sharers, place.row, place.document
        member = self.number // min(self.source.num_shards, self.of) if sharers > 1 else 0
        for rows in self.source.documents(shard, row, self.at_once * sharers):
            mine = rows[member::sharers]
            order = self._draw(place.epoch, 1, shard, row).permutation(len(mine))
            for document in range(begin, len(mine), self.block):
                texts = (mine[i] for i in order[document : document + self.block])
                encoded = [found for text in texts if text and (found := self.encode(text))]
                lengths = np.fromiter(map(len, encoded), np.int32)
                ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32)
                yield Block(Place(place.epoch, place.file, row, document), ids, lengths)
            row, begin = row + len(rows), 0

    def _draw(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.number, *what))


def text_sequences(blocks: Iterator[Block], seq_len: int, passed: int) -> Iterator[Sequence]:
    """Join documents and cut them: every token is a label once, none is left over.

    Args:
        blocks: from the one where the first sequence begins.
        seq_len: positions S of a sequence.
        passed: tokens of the first block before it.
    """
    ids = np.empty(0, np.int32)  # from the beginning of the first held block
    documents = np.empty(0, np.int32)
    held: deque[tuple[Place, int]] = deque()
    number = 0
    for block in blocks:
        held.append((block.place, len(block.ids)))
        numbers = np.arange(number, number + len(block.lengths), dtype=np.int32)
        number += len(block.lengths)
        ids = np.concatenate([ids, block.ids])
        documents = np.concatenate([documents, np.repeat(numbers, block.lengths)])
        while passed + seq_len < len(ids):
            end = passed + seq_len + 1
            taken, numbers = ids[passed:end], documents[passed:end]  # (S + 1,)
            passed += seq_len
            while passed >= held[0][1]:
                length = held.popleft()[1]
                ids, documents, passed = ids[length:], documents[length:], passed - length
            yield Sequence(taken, numbers - numbers[0], State(held[0][0], passed))


def sample_sequences(
    blocks: Iterator[Block], seq_len: int, passed: int, padding: int
) -> Iterator[Sequence]:
    """Pack the samples of each block, none of them cut; see `pack_whole` and `text_sequences`.

    Args:
        blocks: from the one where the first sequence begins.
        seq_len: positions S of a sequence.
        passed: sequences of the first block before it.
        padding: the id to fill up with.
    """
    for block in blocks:
        packed = pack_whole(block.ids, block.lengths, seq_len, padding)
        for number in range(passed, len(packed.ids)):
            after = State(block.place, number + 1)
            yield Sequence(packed.ids[number], packed.documents[number], after)
        passed = 0


def sequences(
    lane: Lane,
    start: State,
    seq_len: int,
    padding: int | None,
    submit: Submit | None,
) -> Iterator[Sequence]:
    """Yield the sequences of a lane from a state on, without end.

    Args:
        lane: whose.
        start: where to begin.
        seq_len: positions S of a sequence.
        padding: the id to fill up with, for samples; None: the documents are text.
        submit: has the next block read while the last one is used up; None: when it is wanted.
    """
    blocks = lane.blocks(start.place)
    if submit is not None:
        blocks = read_ahead(blocks, submit)
    cut = text_sequences if padding is None else partial(sample_sequences, padding=padding)
    return cut(blocks, seq_len, start.passed)
