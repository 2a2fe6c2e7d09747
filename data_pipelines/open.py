"""From the `data` section and its prepared folder to what a run trains and validates on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.config import (
    DataConfig,
    SourceConfig,
    StreamingConfig,
    is_streaming,
    num_lanes,
    row_format,
)
from data_pipelines.loader import Loader, Rows, Split, open_split
from data_pipelines.mixture import MixtureLoader, OpenLane, Source, source_seed
from data_pipelines.prepare import TOKENIZER_FOLDER, encode_document, is_valid
from data_pipelines.prepare_sources import source_folders
from data_pipelines.read_ahead import Submit, start_workers
from data_pipelines.stream import Lane, sequences
from data_pipelines.stream_source import open_stream
from data_pipelines.tokenize import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


def open_train(
    config: DataConfig,
    folder: Path,
    *,
    seed: int,
    micro_batch_size: int,
    num_microbatches: int,
    state: Mapping[str, Any] | None = None,
) -> Loader | MixtureLoader:
    """Return what gives the microbatches to train on.

    Args:
        config: the `data` section.
        folder: what `prepare_data` made of it.
        seed: decides the order.
        micro_batch_size: rows B of a microbatch.
        num_microbatches: microbatches of one step over all ranks.
        state: of streams, from a checkpoint; None: the beginning.

    Raises:
        ValueError: if a source cannot be opened.
    """
    documents = not config.cross_document_attention
    if config.source is not None and not is_streaming(config.source):
        return Loader(
            open_split(folder, "train"),
            seed=seed,
            micro_batch_size=micro_batch_size,
            num_microbatches=num_microbatches,
            documents=documents,
        )
    lanes = num_lanes(config, num_microbatches)
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    workers = (config.streaming or StreamingConfig()).workers
    submit = start_workers(workers) if workers else None
    sources = []
    for name, path in source_folders(folder).items():
        source, share = config.sources[name], config.shares[name]
        if is_streaming(source):
            lane = _open_lane(config, name, source, tokenizer, seed, lanes, submit)
            sources.append(Source(name, share, lane=lane))
        else:
            sources.append(Source(name, share, rows=open_split(path, "train")))
    return MixtureLoader(
        sources,
        seed=seed,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        lanes=lanes,
        documents=documents,
        state=state,
    )


def open_valid(config: DataConfig, folder: Path, *, seed: int, micro_batch_size: int) -> Loader:
    """Return what gives the held-out sequences; of a mixture, sources alternate by their shares.

    Raises:
        ValueError: if nothing is held out.
    """
    split: Rows
    if config.source is not None and not is_streaming(config.source):
        split = open_split(folder, "valid")
    else:
        folders = source_folders(folder)
        splits = [open_split(path, "valid") for path in folders.values()]
        split = interleave(splits, [config.shares[name] for name in folders])
    return Loader(
        split,
        seed=seed,
        micro_batch_size=micro_batch_size,
        num_microbatches=1,
        documents=not config.cross_document_attention,
    )


def _open_lane(
    config: DataConfig,
    name: str,
    source: SourceConfig,
    tokenizer: Tokenizer,
    seed: int,
    lanes: int,
    submit: Submit | None,
) -> OpenLane:
    sample_len = None if row_format(source) == "text" else config.seq_len
    stream = open_stream(source, name)
    at_once = (config.streaming or StreamingConfig()).shuffle_documents

    def encode(text: str) -> list[int]:
        if is_valid(text, config.seed, config.valid_fraction):
            return []
        return encode_document(tokenizer, text, sample_len)

    def lane(number: int) -> Lane:
        block = {} if sample_len is None else {"block": at_once}  # samples are packed together
        return Lane(stream, encode, number, lanes, source_seed(seed, name), at_once, **block)

    padding = None if sample_len is None else tokenizer.eos_id
    return lambda number, state: sequences(lane(number), state, config.seq_len, padding, submit)


@dataclass(frozen=True, slots=True, eq=False)
class Interleaved:
    """Several splits as one."""

    splits: Sequence[Split]
    order: NDArray[np.int64]
    """(N, 2) which split each sequence is of, and its number there."""

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return token ids and document ids, each (B, S + 1) int64, of the sequences (B,)."""
        pairs = [self.splits[s].rows(np.asarray([row])) for s, row in self.order[indices]]
        ids, documents = zip(*pairs, strict=True)
        return torch.cat(ids), torch.cat(documents)


def interleave(splits: Sequence[Split], shares: Sequence[float]) -> Interleaved:
    """Return all sequences of some splits in turns, so that each beginning has their shares."""
    places = [
        (np.full(len(split), number), np.arange(len(split)), (np.arange(len(split)) + 0.5) / share)
        for number, (split, share) in enumerate(zip(splits, shares, strict=True))
    ]
    numbers, rows, keys = (np.concatenate(parts) for parts in zip(*places, strict=True))
    order = np.argsort(keys, kind="stable")
    return Interleaved(splits, np.stack([numbers, rows], axis=1)[order])


def describe_sources(train: Loader | MixtureLoader, steps: int) -> list[str]:
    """Return a line for each source of a mixture: its share, and how often a run sees it."""
    if isinstance(train, Loader):
        return []
    per_step = train.num_microbatches * train.micro_batch_size
    lines = []
    for number, source in enumerate(train.sources):
        count = train.mix.count_before(steps * per_step, number)
        line = (
            f"source {source.name}: {source.share:.2%} of the sequences, {count:,} in {steps} steps"
        )
        epochs = train.epoch(number, steps)
        if source.rows is None or epochs is None:
            lines.append(f"{line}, streamed in {train.num_lanes} lanes")
        else:
            lines.append(f"{line}, {epochs:.2f} epochs of {len(source.rows):,}")
    return lines
