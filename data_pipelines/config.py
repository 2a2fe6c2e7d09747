"""The `data` section of a configuration: where text comes from and how it becomes sequences."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Format = Literal[
    "text", "prompt_response", "chat", "top_v2", "gsm8k", "human_eval", "cnn_dm", "xsum"
]
"""What a row is: a document of plain text, or a sample of which only the answer is learnt."""
_MOST_LANES = 32


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
    format: Format = "text"
    """What a row is: text (a document), prompt_response, chat, or a data set that has a name here:
    top_v2, gsm8k, human_eval, cnn_dm, xsum."""
    chat_template: bool = False
    """Word prompt and response as a user's and an assistant's message, by the tokenizer's chat
    template; format=chat always does."""
    streaming: bool = False
    """Read while training instead of preparing ahead; the section data.streaming says how."""

    def __post_init__(self) -> None:
        _check_format(self, "files", is_default=self.column is None)


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
    format: Format = "text"
    """What a row is: text (a document), prompt_response, chat, or a data set that has a name here:
    top_v2, gsm8k, human_eval, cnn_dm, xsum."""
    chat_template: bool = False
    """Word prompt and response as a user's and an assistant's message, by the tokenizer's chat
    template; format=chat always does."""
    streaming: bool = False
    """Read while training instead of preparing ahead; the section data.streaming says how."""

    def __post_init__(self) -> None:
        _check_format(self, "hub", is_default=self.column == "text")


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
class MixedSource:
    """One source of a mixture: its weight, and exactly one of stdlib, files, hub."""

    weight: float
    """Its share of the sequences is this over the sum of all weights."""
    stdlib: StdlibSource | None = None
    """The interpreter's own standard library."""
    files: FilesSource | None = None
    """Local files."""
    hub: HubSource | None = None
    """A Hugging Face dataset."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"data.mixture.NAME.weight must be positive, got {self.weight}: raise it, or "
                "remove the source"
            )
        _check_exactly_one(self, "data.mixture.NAME")

    @property
    def source(self) -> SourceConfig:
        """The source without its weight."""
        return SourceConfig(stdlib=self.stdlib, files=self.files, hub=self.hub)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamingConfig:
    """How sources with streaming=true are read while training."""

    lanes: int | None = None
    """Into how many streams the documents are dealt; must divide the microbatches of a step. Best a
    multiple of the ranks, each of which reads its own lanes; default: the largest divisor of the
    microbatches that is at most 32."""
    shuffle_documents: int = 256
    """Documents of a lane that are read at once and shuffled; the order of files is shuffled too.
    """
    workers: int = field(default=2, compare=False)
    """Threads of a rank that tokenise ahead; 0: none. The stream does not depend on it."""
    valid_documents: int = 500
    """The first so many held-out documents are what is validated on."""

    def __post_init__(self) -> None:
        least = {"lanes": 1, "shuffle_documents": 1, "workers": 0, "valid_documents": 1}
        for name, least_value in least.items():
            value = getattr(self, name)
            if value is not None and value < least_value:
                raise ValueError(
                    f"data.streaming.{name} must be at least {least_value}, got {value}"
                )


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

    tokenizer: TokenizerConfig
    """Which tokenizer: exactly one of sentencepiece (train one) and path (load one)."""
    seq_len: int
    """Positions of one training sequence."""
    source: SourceConfig | None = None
    """Where the text comes from: exactly one of stdlib, files, hub. Absent with mixture."""
    mixture: dict[str, MixedSource] | None = None
    """Several sources by name, each with its weight."""
    streaming: StreamingConfig | None = None
    """How sources with streaming=true are read; absent: as the defaults say."""
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
        if (self.source is None) == (self.mixture is None):
            raise ValueError("data takes exactly one of source and mixture: give one of them")
        if self.mixture is not None and len(self.mixture) < 2:
            raise ValueError(
                f"data.mixture has {len(self.mixture)} source: give two or more, or data.source"
            )
        if self.streaming is not None and not any(map(is_streaming, self.sources.values())):
            raise ValueError(
                "data.streaming has no effect without a source with streaming=true: remove it"
            )

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """Every source by name, in the order of the names; a lone one is called `source`."""
        if self.source is not None:
            return {"source": self.source}
        return {name: mixed.source for name, mixed in sorted((self.mixture or {}).items())}

    @property
    def shares(self) -> dict[str, float]:
        """What share of the sequences each of `sources` has; they sum to 1."""
        if self.mixture is None:
            return {"source": 1.0}
        total = sum(mixed.weight for mixed in self.mixture.values())
        return {name: mixed.weight / total for name, mixed in sorted(self.mixture.items())}


def is_streaming(source: SourceConfig) -> bool:
    """Whether a source is read while training."""
    place = source.files or source.hub
    return place is not None and place.streaming


def row_format(source: SourceConfig) -> Format:
    """Return what a row of a source is."""
    place = source.files or source.hub
    return "text" if place is None else place.format


def num_lanes(config: DataConfig, num_microbatches: int) -> int:
    """Return into how many lanes streams are dealt.

    Raises:
        ValueError: if the setting does not divide the microbatches of a step.
    """
    lanes = None if config.streaming is None else config.streaming.lanes
    if lanes is None:
        return max(n for n in range(1, _MOST_LANES + 1) if num_microbatches % n == 0)
    if num_microbatches % lanes:
        raise ValueError(
            f"data.streaming.lanes {lanes} does not divide the {num_microbatches} microbatches of "
            "a step (batch.global_size / batch.micro_size): choose a divisor"
        )
    return lanes


def _check_format(place: FilesSource | HubSource, name: str, *, is_default: bool) -> None:
    if place.format != "text" and not is_default:
        raise ValueError(
            f"data.source.{name}.column {place.column!r} has no effect with format "
            f"{place.format}, which has columns of its own: remove it"
        )
    if place.chat_template and place.format in ("text", "chat"):
        raise ValueError(
            f"data.source.{name}.chat_template=true has no effect with format {place.format}: "
            "remove it, or choose a format with prompts and responses"
        )


def _check_exactly_one(section: Any, key: str) -> None:
    names = [field.name for field in fields(section) if field.name != "weight"]
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        remedy = f"set {key}.NAME=null on all but one" if given else "set one of them"
        raise ValueError(
            f"{key} takes exactly one of {', '.join(names)}, got {' and '.join(given) or 'none'}: "
            f"{remedy}"
        )
