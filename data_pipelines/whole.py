"""Pack samples that may not be cut, such as a question with its answer, and fill up with padding.

Letters: S positions, N sequences, K samples.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.pack import Int32s, Sequences

_PACKED_TOGETHER = 1024


def pack_whole(ids: Int32s, lengths: Int32s, seq_len: int, padding: int) -> Sequences:
    """Return the sequences of some samples, each sample whole in one of them.

    The longest come first, each to the fullest sequence that has room (best fit, decreasing), which
    wastes little; sequences are then put in the order of their first samples. Samples stay in order
    inside a sequence. Padding is a document of its own, and not predicted.

    Args:
        ids: (T,) the samples joined; ~id where a token is not to be predicted.
        lengths: (K,) of each sample, from 1 to S + 1.
        seq_len: positions S of a sequence.
        padding: the id to fill up with.
    """
    size = seq_len + 1
    members = sorted(_best_fit(lengths, size))
    rows = np.full((len(members), size), ~padding, np.int32)  # (N, S + 1)
    documents = np.empty_like(rows)
    starts = np.cumsum(lengths) - lengths
    for row, numbers, of in zip(rows, documents, members, strict=True):
        at = 0
        for number, sample in enumerate(of):
            length = int(lengths[sample])
            row[at : at + length] = ids[starts[sample] : starts[sample] + length]
            numbers[at : at + length] = number
            at += length
        numbers[at:] = len(of)
    return Sequences(rows, documents)


def _best_fit(lengths: Int32s, size: int) -> list[list[int]]:
    """Return which samples each sequence holds, ascending."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of each row what is left, and its number, ascending
    for sample in np.argsort(-lengths, kind="stable"):
        length = int(lengths[sample])
        place = bisect_left(rooms, (length, -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(int(sample))
        insort(rooms, (room - length, row))
    return [sorted(row) for row in rows]


def pack_samples(
    batches: Iterable[tuple[Int32s, Int32s]], seq_len: int, padding: int
) -> Iterator[Sequences]:
    """Yield the sequences of a stream of samples, about a thousand packed together.

    Args: see `pack` and `pack_whole`.
    """
    held: list[tuple[Int32s, Int32s]] = []
    for batch in batches:
        held.append(batch)
        if sum(len(lengths) for _, lengths in held) >= _PACKED_TOGETHER:
            yield _pack_held(held, seq_len, padding)
            held = []
    if any(len(lengths) for _, lengths in held):
        yield _pack_held(held, seq_len, padding)


def _pack_held(held: list[tuple[Int32s, Int32s]], seq_len: int, padding: int) -> Sequences:
    ids, lengths = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return pack_whole(ids, lengths, seq_len, padding)
