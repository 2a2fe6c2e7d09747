"""Join documents and cut them into sequences of equal length, kept in one Arrow file a split."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Int32s = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSize:
    """How much a split holds."""

    documents: int = 0
    """Documents that are not empty."""
    tokens: int = 0
    """Their tokens, the one that ends each document included."""
    sequences: int = 0
    """Sequences cut from them; what is left after the last is not used."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Consecutive sequences; the last token of each is the first of the next, N sequences."""

    ids: Int32s
    """(N, S + 1) token ids; ~id for a token that is read but not predicted, as in a prompt."""
    documents: Int32s
    """(N, S + 1) which document of the split each token belongs to, from 0."""


def pack(batches: Iterable[tuple[Int32s, Int32s]], seq_len: int) -> Iterator[Sequences]:
    """Yield the sequences of a stream of documents: every token but the first is a label once.

    Args:
        batches: whole documents, as their joined ids (T,) and the length of each (K,).
        seq_len: positions S of a sequence; S + 1 tokens are kept for the shifted label.
    """
    ids = np.empty(0, np.int32)
    documents = np.empty(0, np.int32)
    num_documents = 0
    for new_ids, lengths in batches:
        numbers = np.arange(num_documents, num_documents + len(lengths), dtype=np.int32)
        num_documents += len(lengths)
        ids = np.concatenate([ids, new_ids])
        documents = np.concatenate([documents, np.repeat(numbers, lengths)])
        if len(ids) > seq_len:
            packed = Sequences(_windows(ids, seq_len), _windows(documents, seq_len))
            used = len(packed.ids) * seq_len
            ids, documents = ids[used:], documents[used:]
            yield packed


def _windows(stream: Int32s, seq_len: int) -> Int32s:
    return sliding_window_view(stream, seq_len + 1)[::seq_len]


def write_split(
    path: Path,
    batches: Iterable[tuple[Int32s, Int32s]],
    seq_len: int,
    packer: Callable[[Iterable[tuple[Int32s, Int32s]], int], Iterable[Sequences]] = pack,
) -> SplitSize:
    """Pack documents into an Arrow file; return how much it holds. Arguments: see `pack`."""
    kind = pa.list_(pa.int32(), seq_len + 1)
    schema = pa.schema({"ids": kind, "documents": kind})
    documents = tokens = sequences = 0

    def counted() -> Iterator[tuple[Int32s, Int32s]]:
        nonlocal documents, tokens
        for ids, lengths in batches:
            documents += len(lengths)
            tokens += len(ids)
            yield ids, lengths

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for packed in packer(counted(), seq_len):
            sequences += len(packed.ids)
            columns = [_column(packed.ids), _column(packed.documents)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return SplitSize(documents=documents, tokens=tokens, sequences=sequences)


def _column(rows: Int32s) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
