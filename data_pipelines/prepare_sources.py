"""Prepare whatever `data` describes: one source, a mixture of several, sources that are streamed.

A mixture's folder holds the shared tokenizer and the names of its sources' folders, each of which
is prepared as if it were alone, and shared by all mixtures with it. Of a streamed source only what
it is validated on is prepared.
"""

import hashlib
import itertools
import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.config import (
    DataConfig,
    SourceConfig,
    StreamingConfig,
    TokenizerConfig,
    is_streaming,
    row_format,
)
from data_pipelines.formats import plain_text
from data_pipelines.pack import Int32s, SplitSize, pack, write_split
from data_pipelines.prepare import (
    SUMMARY_FILE,
    TOKENIZER_FOLDER,
    Prepared,
    content_digest,
    encode_document,
    is_valid,
    prepare,
    publish,
    read_prepared,
    training_texts,
)
from data_pipelines.sources import open_source, source_identity
from data_pipelines.stream_source import open_stream
from data_pipelines.tokenize import load_tokenizer, train_sentencepiece
from data_pipelines.whole import pack_samples

logger = logging.getLogger(__name__)

SOURCES_FILE = "sources.json"
_SAMPLE_CHARACTERS = 8_000_000
_READ_AT_ONCE, _FILES_AT_ONCE = 64, 16
_MOST_SCANNED = 100_000


def prepare_data(config: DataConfig) -> Path:
    """Return the folder of the prepared data of all sources, making what is not there.

    Raises:
        ValueError: one line naming the key or the file at fault, and the remedy.
    """
    if config.source is not None and not is_streaming(config.source):
        return prepare(config)
    tokenizer_path = config.tokenizer.path or str(_shared_tokenizer(config))
    folders = {
        name: _prepare_one(config, name, source, tokenizer_path).name
        for name, source in config.sources.items()
    }
    digest = _digest({"sources": folders, "seq_len": config.seq_len})
    return _make(config, digest, lambda folder: _write_mixture(config, folders, folder, digest))


def source_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the sources of a mixture's folder, by name."""
    names: dict[str, str] = json.loads((folder / SOURCES_FILE).read_text())
    return {name: folder.parent / fingerprint for name, fingerprint in names.items()}


def _make(config: DataConfig, fingerprint: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of this name, having it built whole or not at all if it is not there."""
    folder = Path(config.cache_folder) / fingerprint
    if not folder.exists():
        Path(config.cache_folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=config.cache_folder, suffix=".tmp") as work:
            built = Path(work) / "prepared"
            built.mkdir()
            build(built)
            publish(built, folder)
    if not (folder / SUMMARY_FILE).is_file():
        raise RuntimeError(f"{folder} has no {SUMMARY_FILE}: it was damaged, remove it")
    return folder


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _prepare_one(config: DataConfig, name: str, source: SourceConfig, tokenizer_path: str) -> Path:
    alone = replace(
        config,
        source=source,
        mixture=None,
        tokenizer=TokenizerConfig(path=tokenizer_path),
        streaming=config.streaming if is_streaming(source) else None,
    )
    with _named(config, name):
        return _prepare_stream(alone, name) if is_streaming(source) else prepare(alone)


@contextmanager
def _named(config: DataConfig, name: str) -> Iterator[None]:
    """Let what is wrong with a source of a mixture be said of its own keys."""
    try:
        yield
    except ValueError as error:
        if config.mixture is None:
            raise
        raise ValueError(str(error).replace("data.source", f"data.mixture.{name}")) from None


def _prepare_stream(config: DataConfig, name: str) -> Path:
    """Make the folder of a streamed source: its validation split and the tokenizer."""
    (source,) = config.sources.values()
    tokenizer = load_tokenizer(str(config.tokenizer.path))
    count = (config.streaming or StreamingConfig()).valid_documents
    fingerprint = _digest(
        {
            "stream": source_identity(source),
            "tokenizer": content_digest(tokenizer),
            "seq_len": config.seq_len,
            "valid_fraction": config.valid_fraction,
            "valid_documents": count,
            "seed": config.seed,
        }
    )

    def build(folder: Path) -> None:
        tokenizer.save(folder / TOKENIZER_FOLDER)
        is_text = row_format(source) == "text"
        texts = list(_held_out(config, source, name, count)) if config.valid_fraction else []
        encoded = [
            np.asarray(ids, np.int32)
            for text in texts
            if (ids := encode_document(tokenizer, text, None if is_text else config.seq_len))
        ]
        size = _write_valid(folder, encoded, config.seq_len, None if is_text else tokenizer.eos_id)
        if config.valid_fraction and not size.sequences:
            remedy = "or lower data.seq_len" if is_text or encoded else "or data.seq_len itself"
            raise ValueError(
                f"{name}: the {len(texts)} held-out documents fill no sequence: raise "
                f"data.valid_fraction or data.streaming.valid_documents, {remedy}"
            )
        if config.valid_fraction and len(texts) < count:
            logger.info(
                "%s: %d documents are held out of the first %d; %d were asked for",
                *(name, len(texts), _MOST_SCANNED, count),
            )
        summary = Prepared(
            fingerprint=fingerprint,
            vocab_size=tokenizer.vocab_size,
            seq_len=config.seq_len,
            empty_documents=0,
            train=SplitSize(),
            valid=size,
        )
        _write_summary(folder, summary)

    return _make(config, fingerprint, build)


def _held_out(config: DataConfig, source: SourceConfig, name: str, count: int) -> Iterator[str]:
    """Yield the first held-out documents of a stream."""
    documents = itertools.islice(_documents(source, name), _MOST_SCANNED)
    held = (text for text in documents if is_valid(text, config.seed, config.valid_fraction))
    return itertools.islice(held, count)


def _documents(source: SourceConfig, name: str) -> Iterator[str]:
    """Yield the documents of a stream that are not empty, some of each of a few files in turn."""
    stream = open_stream(source, name)
    closed = iter(range(stream.num_shards))
    files: deque[Iterator[list[str | None]]] = deque()
    while True:
        for shard in itertools.islice(closed, _FILES_AT_ONCE - len(files)):
            files.append(stream.documents(shard, 0, _READ_AT_ONCE))
        if not files:
            return
        some = next(files[0], None)
        if some is None:
            files.popleft()
        else:
            files.rotate(-1)
            yield from (text for text in some if text)


def _write_valid(
    folder: Path, documents: list[Int32s], seq_len: int, padding: int | None
) -> SplitSize:
    lengths = np.fromiter(map(len, documents), np.int32)
    joined = np.concatenate([np.empty(0, np.int32), *documents])

    def packer(batches: Any, length: int) -> Any:
        return pack(batches, length) if padding is None else pack_samples(batches, length, padding)

    return write_split(folder / "valid.arrow", [(joined, lengths)], seq_len, packer)


def _write_mixture(
    config: DataConfig, names: dict[str, str], folder: Path, fingerprint: str
) -> None:
    first, *_ = found = [read_prepared(Path(config.cache_folder) / name) for name in names.values()]
    tokenizer = load_tokenizer(Path(config.cache_folder) / first.fingerprint / TOKENIZER_FOLDER)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    (folder / SOURCES_FILE).write_text(json.dumps(names, indent=2) + "\n")
    train, valid = (_total([getattr(each, s) for each in found]) for s in ("train", "valid"))
    summary = Prepared(
        fingerprint=fingerprint,
        vocab_size=tokenizer.vocab_size,
        seq_len=config.seq_len,
        empty_documents=sum(each.empty_documents for each in found),
        train=train,
        valid=valid,
    )
    _write_summary(folder, summary)


def _total(sizes: list[SplitSize]) -> SplitSize:
    columns = zip(*(asdict(size).values() for size in sizes), strict=True)
    return SplitSize(**dict(zip(asdict(SplitSize()), map(sum, columns), strict=True)))


def _write_summary(folder: Path, summary: Prepared) -> None:
    (folder / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2) + "\n")


def _shared_tokenizer(config: DataConfig) -> Path:
    """Return the folder of a tokenizer trained on all sources, each by its share."""
    assert config.tokenizer.sentencepiece is not None, "TokenizerConfig takes exactly one of two"
    vocab_size = config.tokenizer.sentencepiece.vocab_size
    identity = {
        "sources": {name: source_identity(source) for name, source in config.sources.items()},
        "shares": config.shares,
        "vocab_size": vocab_size,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed,
    }
    folder = Path(config.cache_folder) / f"tokenizer-{_digest(identity)}"
    if not folder.exists():
        Path(config.cache_folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=config.cache_folder, suffix=".tmp") as work:
            logger.info("training a SentencePiece tokenizer with %d pieces", vocab_size)
            built = Path(work) / "tokenizer"
            sample = list(_sample(config, Path(work)))  # or errors would be the trainer's
            train_sentencepiece(sample, vocab_size, built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder


def _sample(config: DataConfig, work: Path) -> Iterator[str]:
    for number, (name, source) in enumerate(config.sources.items()):
        left = int(config.shares[name] * _SAMPLE_CHARACTERS)
        folder = work / str(number)
        folder.mkdir()
        with _named(config, name):
            for text in _trained_texts(config, name, source, folder):
                if left <= 0:
                    break
                yield text[:left]
                left -= len(text)


def _trained_texts(
    config: DataConfig, name: str, source: SourceConfig, work: Path
) -> Iterator[str]:
    """Yield documents of a source that are not held out, to train a tokenizer on."""
    if not is_streaming(source):
        alone = replace(config, source=source, mixture=None, streaming=None)
        yield from training_texts(open_source(source, work), alone)
        return
    is_text = row_format(source) == "text"
    for text in _documents(source, name):
        if not is_valid(text, config.seed, config.valid_fraction):
            yield text if is_text else plain_text(text)
