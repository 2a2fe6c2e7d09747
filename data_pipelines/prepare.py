"""Make training data once: tokenise, split by document, pack, publish under a fingerprint."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from data_pipelines.config import DataConfig, SourceConfig, row_format
from data_pipelines.formats import encode_sample, plain_text
from data_pipelines.pack import Int32s, SplitSize, pack, write_split
from data_pipelines.sources import open_source, source_identity
from data_pipelines.tokenize import Tokenizer, load_tokenizer, train_sentencepiece
from data_pipelines.whole import pack_samples
from models.json_file import read_object

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every fingerprint; raised when the same config would prepare other data than before."""
SUMMARY_FILE = "prepared.json"
TOKENIZER_FOLDER = "tokenizer"
_ENCODED_AT_ONCE = 64
_PACKED_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a folder of prepared data holds."""

    fingerprint: str
    """Of the config, the source and the tokenizer; the name of the folder."""
    vocab_size: int
    """Of the tokenizer beside the data."""
    seq_len: int
    """Positions of one sequence."""
    empty_documents: int
    """Documents of the source that were left out because they have no text, or samples whose prompt
    fills a sequence, so that no answer is left."""
    train: SplitSize
    """What there is to train on."""
    valid: SplitSize
    """What there is to validate on."""


def prepare(config: DataConfig) -> Path:
    """Return the folder of prepared data, making it if it is not there.

    It holds train.arrow, valid.arrow, tokenizer/ and prepared.json. It appears whole or not at all,
    also when several processes prepare the same data at once.

    Raises:
        ValueError: one line naming the key or the file at fault, and the remedy.
    """
    given = config.tokenizer.path
    tokenizer = None if given is None else load_tokenizer(given)
    fingerprint = _fingerprint(config, tokenizer)
    folder = Path(config.cache_folder) / fingerprint
    if (folder / SUMMARY_FILE).is_file():
        logger.info("reusing the prepared data in %s", folder)
        return folder
    if folder.exists():
        raise RuntimeError(f"{folder} has no {SUMMARY_FILE}: it was damaged, remove it")
    Path(config.cache_folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.cache_folder, suffix=".tmp") as work:
        built = Path(work) / "prepared"
        built.mkdir()
        _build(config, tokenizer, fingerprint, built, Path(work))
        publish(built, folder)
    return folder


def read_prepared(folder: str | Path) -> Prepared:
    """Return what a folder of prepared data holds.

    Raises:
        ValueError: if it is not such a folder.
    """
    path = Path(folder) / SUMMARY_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not prepared data: it has no {SUMMARY_FILE}")
    content = read_object(path)
    try:
        train, valid = (SplitSize(**content.pop(name)) for name in ("train", "valid"))
        return Prepared(**content, train=train, valid=valid)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove {folder}") from None


def _fingerprint(config: DataConfig, tokenizer: Tokenizer | None) -> str:
    """Digest what decides the prepared data, and nothing else."""
    trained = config.tokenizer.sentencepiece
    parts = {
        "format": FORMAT,
        "source": source_identity(_source(config)),
        "tokenizer": asdict(trained) if trained else content_digest(tokenizer),
        "seq_len": config.seq_len,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def content_digest(tokenizer: Tokenizer | None) -> str:
    """Digest the files of a tokenizer."""
    assert tokenizer is not None, "TokenizerConfig takes exactly one of two"
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(
    config: DataConfig, tokenizer: Tokenizer | None, fingerprint: str, folder: Path, work: Path
) -> None:
    text = open_source(_source(config), work)
    if config.tokenizer.sentencepiece is not None:
        vocab_size = config.tokenizer.sentencepiece.vocab_size
        logger.info("training a SentencePiece tokenizer with %d pieces", vocab_size)
        sample = training_texts(text, config)
        tokenizer = train_sentencepiece(sample, vocab_size, folder / TOKENIZER_FOLDER)
    else:
        assert tokenizer is not None, "TokenizerConfig takes exactly one of two"
        tokenizer.save(folder / TOKENIZER_FOLDER)
    tokens = _tokenise(text, tokenizer, config, work)
    sizes = {}
    for split in ("train", "valid"):
        batches = _documents_of(tokens, is_valid=split == "valid")
        is_text = row_format(_source(config)) == "text"
        packer = pack if is_text else partial(pack_samples, padding=tokenizer.eos_id)
        sizes[split] = write_split(folder / f"{split}.arrow", batches, config.seq_len, packer)
        _check_size(split, sizes[split], config)
    summary = Prepared(
        fingerprint=fingerprint,
        vocab_size=tokenizer.vocab_size,
        seq_len=config.seq_len,
        empty_documents=len(text) - len(tokens),
        train=sizes["train"],
        valid=sizes["valid"],
    )
    (folder / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2) + "\n")


def publish(built: Path, folder: Path) -> None:
    """Move finished data to its name, unless another process was faster with the same data."""
    try:
        built.rename(folder)
    except OSError:
        if not (folder / SUMMARY_FILE).is_file():
            raise


def training_texts(text: datasets.Dataset, config: DataConfig) -> Iterator[str]:
    """Yield the training documents in a seeded order, so that a sample is drawn from everywhere."""
    for index in np.random.default_rng(config.seed).permutation(len(text)):
        document = text[int(index)]["text"]
        if document and not is_valid(document, config.seed, config.valid_fraction):
            yield document if row_format(_source(config)) == "text" else plain_text(document)


def is_valid(text: str, seed: int, valid_fraction: float) -> bool:
    """Whether a document is for validation: decided by what it says, so that copies go together."""
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") < valid_fraction * 2**64


def _tokenise(
    text: datasets.Dataset, tokenizer: Tokenizer, config: DataConfig, work: Path
) -> datasets.Dataset:
    """Return `ids` and `is_valid` of every document that has text; each ends with eos."""
    if not len(text):
        raise ValueError(f"data.source has no documents: {_describe(config)}")
    features = {"ids": datasets.List(datasets.Value("int32")), "is_valid": datasets.Value("bool")}
    num_processes = min(config.num_processes, len(text))
    tokens = text.map(
        _encode_batch,
        batched=True,
        batch_size=_ENCODED_AT_ONCE,
        fn_kwargs={
            "tokenizer": tokenizer,
            "seed": config.seed,
            "valid_fraction": config.valid_fraction,
            "sample_len": None if row_format(_source(config)) == "text" else config.seq_len,
        },
        remove_columns=text.column_names,
        features=datasets.Features(features),
        num_proc=num_processes if num_processes > 1 else None,
        cache_file_name=str(work / "tokens.arrow"),
        load_from_cache_file=False,
        new_fingerprint="tokens",  # spares hashing the tokenizer; this file is never looked up
        desc="tokenise",
    )
    if not len(tokens):
        what = "documents without text"
        if row_format(_source(config)) != "text":
            what = f"samples whose prompts leave no room in data.seq_len {config.seq_len}: raise it"
        raise ValueError(f"data.source has only {what}: {_describe(config)}")
    return tokens


def _encode_batch(
    batch: dict[str, list[str | None]],
    *,
    tokenizer: Tokenizer,
    seed: int,
    valid_fraction: float,
    sample_len: int | None,
) -> dict[str, list[Any]]:
    encoded = [(t, encode_document(tokenizer, t, sample_len)) for t in batch["text"] if t]
    return {
        "ids": [np.asarray(ids, np.int32) for _, ids in encoded if ids],
        "is_valid": [is_valid(t, seed, valid_fraction) for t, ids in encoded if ids],
    }


def encode_document(tokenizer: Tokenizer, text: str, sample_len: int | None) -> list[int]:
    """Return the ids of a document, the one that ends it included; of a sample, see its encoder.

    Args:
        tokenizer: whose ids.
        text: not empty.
        sample_len: positions of a sequence, if the text is a sample's; None: it is plain text.
    """
    if sample_len is None:
        return [*tokenizer.encode(text), tokenizer.eos_id]
    return encode_sample(tokenizer, text, sample_len)


def _documents_of(tokens: datasets.Dataset, *, is_valid: bool) -> Iterator[tuple[Int32s, Int32s]]:
    """Yield the documents of one split in order, as `pack` takes them."""
    for batch in tokens.with_format("arrow").iter(batch_size=_PACKED_AT_ONCE):
        mine = pc.equal(batch["is_valid"], is_valid)
        documents = batch["ids"].filter(mine)
        lengths = pc.list_value_length(documents).to_numpy()
        yield pc.list_flatten(documents).to_numpy(), lengths


def _check_size(split: str, size: SplitSize, config: DataConfig) -> None:
    if size.sequences or (split == "valid" and not config.valid_fraction):
        return
    if not size.documents:
        change = "raise" if split == "valid" else "lower"
        raise ValueError(
            f"data.valid_fraction {config.valid_fraction} leaves no document for the {split} "
            f"split: {change} it, or give more documents"
        )
    raise ValueError(
        f"data.seq_len {config.seq_len} is too large: the {size.documents} documents of the "
        f"{split} split have {size.tokens} tokens, which fill no sequence; lower it, change "
        "data.valid_fraction, or give more text"
    )


def _source(config: DataConfig) -> SourceConfig:
    assert config.source is not None, "a mixture is prepared source by source"
    return config.source


def _describe(config: DataConfig) -> str:
    source = _source(config)
    return str(source.stdlib or source.files or source.hub)
