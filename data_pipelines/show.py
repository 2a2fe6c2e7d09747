"""What a rank trains on at a step, as text: which tokens are learnt, where documents end.

`python -m data_pipelines show CONFIG step=10 rank=1 world=2`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from data_pipelines.config import DataConfig, num_lanes
from data_pipelines.loader import IGNORED, Loader, make_batch
from data_pipelines.mixture import MixtureLoader
from data_pipelines.open import describe_sources, open_train
from data_pipelines.prepare import TOKENIZER_FOLDER
from data_pipelines.prepare_sources import prepare_data
from data_pipelines.tokenize import HuggingFaceTokenizer, Tokenizer, load_tokenizer

_DIM, _PLAIN = "\033[2m", "\033[0m"
_OPEN, _CLOSE = "«", "»"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSizes:
    """What of a trainer's `batch` section decides which sequences are together."""

    global_size: int
    """Sequences per optimiser step, over all ranks."""
    micro_size: int
    """Sequences of one forward pass on one rank."""

    def __post_init__(self) -> None:
        if self.micro_size < 1 or self.global_size < 1 or self.global_size % self.micro_size:
            raise ValueError(
                f"batch.global_size {self.global_size} must be a multiple of batch.micro_size "
                f"{self.micro_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowConfig:
    """A trainer's config, as far as it decides the data, and what to show of it."""

    data: DataConfig
    """What is trained on."""
    batch: BatchSizes
    """Sizes of batches."""
    seed: int = 0
    """The run's seed, which decides the order."""
    step: int = 0
    """Optimiser step, from 0."""
    rank: int = 0
    """Whose share of the step to show."""
    world: int = 1
    """Ranks of the run."""
    most: int = 4
    """Show at most so many sequences."""

    def __post_init__(self) -> None:
        for name, least in {"step": 0, "rank": 0, "world": 1, "most": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.rank >= self.world:
            raise ValueError(
                f"rank={self.rank} is not one of world={self.world} ranks, counted from 0: "
                "raise world"
            )
        if self.microbatches % self.world:
            raise ValueError(
                f"world={self.world} ranks cannot share the {self.microbatches} microbatches of a "
                "step (batch.global_size / batch.micro_size): choose a divisor"
            )
        num_lanes(self.data, self.microbatches)

    @property
    def microbatches(self) -> int:
        """Microbatches of one step, over all ranks."""
        return self.batch.global_size // self.batch.micro_size


def show(config: ShowConfig, *, colour: bool) -> Iterator[str]:
    """Yield the lines that show some sequences of a rank's share of a step.

    A token that is not learnt, as it is part of a prompt or the first of its sequence, is dimmed
    on a terminal, else between « and ».

    Args:
        config: which ones.
        colour: whether the lines go to a terminal.

    Raises:
        ValueError: if the data cannot be prepared or opened.
    """
    folder = prepare_data(config.data)
    train = open_train(
        config.data,
        folder,
        seed=config.seed,
        micro_batch_size=config.batch.micro_size,
        num_microbatches=config.microbatches,
    )
    mine = range(config.rank, config.microbatches, config.world)
    numbers = ", ".join(map(str, mine))
    yield (
        f"step {config.step}, rank {config.rank} of {config.world}: microbatches {numbers} of "
        f"{config.microbatches}, {config.batch.micro_size} sequences of {config.data.seq_len} each"
    )
    yield from describe_sources(train, config.step)
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    separate = not config.data.cross_document_attention
    yield from _shown(train, config, mine, tokenizer, colour=colour, separate=separate)


def _shown(
    train: Loader | MixtureLoader,
    config: ShowConfig,
    mine: range,
    tokenizer: Tokenizer,
    *,
    colour: bool,
    separate: bool,
) -> Iterator[str]:
    places = [(index, row) for index in mine for row in range(config.batch.micro_size)]
    for index, group in groupby(places[: config.most], key=lambda place: place[0]):
        ids, documents = train.rows(config.step, index)  # (B, S + 1)
        labels = make_batch(ids, documents, separate=separate).labels  # (B, S)
        for _, row in group:
            source = ""
            if isinstance(train, MixtureLoader):
                source = train.sources[train.sources_of(config.step, index)[row]].name
            yield ""
            is_filler = _is_filler(ids[row], documents[row], tokenizer.eos_id)  # (S + 1,)
            yield _heading(index, row, source, labels[row], documents[row][~is_filler])
            yield from sequence_lines(
                ids[row], documents[row], labels[row], tokenizer, colour=colour
            )
    if len(places) > config.most:
        left = len(places) - config.most
        yield f"\n{left} more sequences of this rank: most={len(places)} shows all"


def _heading(index: int, row: int, source: str, labels: Tensor, documents: Tensor) -> str:
    learnt, count = int((labels != IGNORED).sum()), len(torch.unique(documents))
    named = f", source {source}" if source else ""
    return (
        f"== microbatch {index}, sequence {row}{named}: {learnt} of {len(labels)} positions "
        f"learn, {count} document{'s' if count > 1 else ''}"
    )


def sequence_lines(
    ids: Tensor, documents: Tensor, labels: Tensor, tokenizer: Tokenizer, *, colour: bool
) -> Iterator[str]:
    """Yield the lines that show one sequence, document by document.

    Args:
        ids: (S + 1,) token ids, ~id for what is not to be predicted.
        documents: (S + 1,) document ids.
        labels: (S,) as the loss takes them.
        tokenizer: decodes.
        colour: whether the lines go to a terminal.
    """
    learnt = [False, *(labels != IGNORED).tolist()]  # (S + 1,) whether a token is predicted
    tokens = torch.where(ids < 0, ~ids, ids).tolist()
    is_filler, begin = _is_filler(ids, documents, tokenizer.eos_id), 0
    for _, group in groupby(documents.tolist()):
        end = begin + len(list(group))
        if bool(is_filler[begin]):
            yield f"-- tokens {begin} to {end - 1}: padding"
            return
        count = sum(learnt[begin:end])
        yield f"-- tokens {begin} to {end - 1}, {count} of {end - begin} learnt"
        text = "".join(
            _mark(decode_all(tokenizer, [token for token, _ in part]), is_learnt, colour=colour)
            for is_learnt, part in _parts(tokens[begin:end], learnt[begin:end])
        )
        yield from (f"   {line}" for line in text.split("\n"))
        begin = end


def _is_filler(ids: Tensor, documents: Tensor, eos_id: int) -> Tensor:
    """Return (S + 1,) where a sequence is filled up: the last document, if it has no token to learn
    and nothing but ends of documents.
    """
    last = documents == documents[-1]  # (S + 1,)
    return last & bool((ids[last] == ~eos_id).all())


def _parts(
    tokens: list[int], learnt: list[bool]
) -> Iterator[tuple[bool, Iterator[tuple[int, bool]]]]:
    return groupby(zip(tokens, learnt, strict=True), key=lambda pair: pair[1])


def _mark(text: str, is_learnt: bool, *, colour: bool) -> str:
    if is_learnt:
        return text
    if not colour:
        return f"{_OPEN}{text}{_CLOSE}"
    return "\n".join(f"{_DIM}{line}{_PLAIN}" for line in text.split("\n"))


def decode_all(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of ids with the special tokens that `decode` leaves out."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return str(tokenizer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    parts = [list(g) for _, g in groupby(ids, key=lambda i: i == tokenizer.eos_id)]
    return "".join(
        "</s>" * len(part) if part[0] == tokenizer.eos_id else tokenizer.decode(part)
        for part in parts
    )
