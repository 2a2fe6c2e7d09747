"""The `data` section of a configuration: where text comes from and how it becomes sequences."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StdlibSource:
    """The `.py` files of the running interpreter's standard library: always present, no network."""

    max_megabytes: float | None = None
    """Stop before the file that would exceed this many million bytes; absent: take all (~12)."""

    def __post_init__(self) -> None:
        if self.max_megabytes is not None and not self.max_megabytes > 0:
            raise ValueError(
                f"data.source.stdlib.max_megabytes must be positive, got {self.max_megabytes}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesSource:
    """Local files: Parquet, CSV, JSONL (.jsonl, .json); every other file is one document."""

    path: str
    """A file, or a folder that is searched with its subfolders; hidden files are left out."""
    column: str | None = None
    """Which column of JSONL, Parquet and CSV holds the text; default: text."""
    pattern: str | None = None
    """Take only the files of the folder that match this glob, such as "*.jsonl"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A dataset of the Hugging Face hub, downloaded once by `datasets`."""

    name: str
    """Its id, such as HuggingFaceFW/fineweb-edu; or a local folder laid out like one."""
    config: str | None = None
    """Which configuration of it, such as sample-10BT; absent: its default."""
    split: str = "train"
    """Which split of it; train and valid are both cut from this one."""
    column: str = "text"
    """Which column holds the text."""
    revision: str | None = None
    """Commit or tag; absent: the newest at the first preparation, which is then reused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Where the text comes from: exactly one of these."""

    stdlib: StdlibSource | None = None
    """The interpreter's own standard library."""
    files: FilesSource | None = None
    """Local files."""
    hub: HubSource | None = None
    """A Hugging Face dataset."""

    def __post_init__(self) -> None:
        _check_exactly_one(self, "data.source")


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceConfig:
    """Train a lossless byte-pair SentencePiece tokenizer on the source's training documents."""

    vocab_size: int
    """Number of pieces, of which 258 are the bytes, the unknown piece and the end of a document."""

    def __post_init__(self) -> None:
        if self.vocab_size <= 258:
            raise ValueError(
                "data.tokenizer.sentencepiece.vocab_size must be above 258 (bytes and special "
                f"pieces), got {self.vocab_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Which tokenizer: exactly one of these."""

    sentencepiece: SentencePieceConfig | None = None
    """Train one."""
    path: str | None = None
    """Load one: a SentencePiece .model, a folder with tokenizer files, or a hub id."""

    def __post_init__(self) -> None:
        _check_exactly_one(self, "data.tokenizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Text, tokenizer and packing."""

    source: SourceConfig
    """Where the text comes from: exactly one of stdlib, files, hub."""
    tokenizer: TokenizerConfig
    """Which tokenizer: exactly one of sentencepiece (train one) and path (load one)."""
    seq_len: int
    """Positions of one training sequence."""
    valid_fraction: float = 0.02
    """Share of the documents that is kept for validation; 0: none."""
    cross_document_attention: bool = True
    """Whether a position may look at earlier documents packed into its sequence."""
    cache_folder: str = "data"
    """Where prepared data is kept, one folder for each fingerprint."""
    num_processes: int = 2
    """Processes that tokenise; the result does not depend on it."""
    seed: int = 0
    """Decides which documents are for validation and which text trains the tokenizer."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.valid_fraction < 1:
            raise ValueError(f"data.valid_fraction must be in [0, 1), got {self.valid_fraction}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"data.seed must be in [0, 2**63), got {self.seed}")


def _check_exactly_one(section: Any, key: str) -> None:
    names = [field.name for field in fields(section)]
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        remedy = f"set {key}.NAME=null on all but one" if given else "set one of them"
        raise ValueError(
            f"{key} takes exactly one of {', '.join(names)}, got {' and '.join(given) or 'none'}: "
            f"{remedy}"
        )
