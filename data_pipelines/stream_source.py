"""Sources that are read while training: `datasets` with streaming=True, local or of the hub."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from data_pipelines.config import FilesSource, HubSource, SourceConfig
from data_pipelines.files import DEFAULT_COLUMN, list_files
from data_pipelines.formats import columns_of, sample_text

_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}
_ONE_TEXT = ("text", {"sample_by": "document"})


@dataclass(frozen=True, slots=True, eq=False)
class StreamSource:
    """An open source: rows in shards, which are files."""

    name: str
    """For messages."""
    place: FilesSource | HubSource
    dataset: Any
    """The datasets.IterableDataset, with the columns that are read."""
    paths: tuple[Path, ...]
    """Of local files, in the order of the shards."""

    @property
    def num_shards(self) -> int:
        """How many files there are."""
        return int(self.dataset.num_shards)

    def where(self, shard: int) -> str:
        """Name a shard in a message."""
        if self.paths:
            return f"{self.name}: {self.paths[shard]}"
        return f"{self.name}: file {shard + 1} of {self.num_shards}"

    def documents(self, shard: int, first: int, at_once: int) -> Iterator[list[str | None]]:
        """Yield the documents of a shard in order, `at_once` together; empty ones too.

        Samples come as JSON text. Rows that are passed over are read, but not looked at.

        Args:
            shard: which one.
            first: rows to pass over, a multiple of `at_once`.
            at_once: how many to yield together; the last are fewer.

        Raises:
            ValueError: naming source and row, if something cannot be read, or is not as it should.
        """
        rows = self.dataset.shard(self.num_shards, shard)
        if first:
            rows = rows.skip(first)
        tables = rows.with_format("arrow").iter(batch_size=at_once)
        while True:
            try:
                table = next(tables, None)
            except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                where = f"{self.where(shard)} after row {first}"
                raise ValueError(f"{where} cannot be read: {reason}") from None
            if table is None:
                return
            yield self._documents(table, self.where(shard), first)
            first += len(table)

    def _documents(self, table: pa.Table, where: str, first: int) -> list[str | None]:
        if self.place.format == "text":
            (column,) = table.column_names
            texts: list[str | None] = table[column].to_pylist()
            for number, text in enumerate(texts, first + 1):
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"{where}, row {number}: {column} must be text, got {text!r}")
            return texts
        return [
            sample_text(
                row,
                self.place.format,
                f"{where}, row {number}",
                chat_template=self.place.chat_template,
            )
            for number, row in enumerate(table.to_pylist(), first + 1)
        ]


def open_stream(source: SourceConfig, name: str) -> StreamSource:
    """Open a source with streaming=true; nothing but its first rows is read.

    Raises:
        ValueError: if it cannot be opened, has files of several kinds, or lacks a column.
    """
    place = source.files or source.hub
    assert place is not None, "only files and hub are streamed"
    kind, settings = _how(place)
    try:
        dataset = datasets.load_dataset(kind, streaming=True, **settings)
        present = dataset.column_names or list(next(iter(dataset), {}))
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be streamed: {reason}") from None
    for column in (wanted := list(_columns(place))):
        if column not in present:
            key = "column" if place.format == "text" else "format"
            raise ValueError(
                f"{name} has no column {column!r} (it has {', '.join(present) or 'none'}): set its "
                f"{key}"
            )
    paths = list_files(place) if isinstance(place, FilesSource) else []
    return StreamSource(name, place, dataset.select_columns(wanted), tuple(paths))


def _columns(place: FilesSource | HubSource) -> tuple[str, ...]:
    if place.format != "text":
        return columns_of(place.format)
    return (place.column or DEFAULT_COLUMN,)


def _how(place: FilesSource | HubSource) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `load_dataset`."""
    if isinstance(place, HubSource):
        return place.name, {"name": place.config, "split": place.split, "revision": place.revision}
    files = list_files(place)
    kinds = {_BUILDERS.get(path.suffix.lower(), _ONE_TEXT)[0] for path in files}
    if len(kinds) > 1:
        raise ValueError(
            f"data.source.files.path {place.path} has files of several kinds "
            f"({', '.join(sorted(kinds))}), which cannot be streamed as one source: choose with "
            "data.source.files.pattern"
        )
    kind, settings = _BUILDERS.get(files[0].suffix.lower(), _ONE_TEXT)
    if kind == "csv":  # "NA" is a word, and 007 is not 7
        as_text = {"keep_default_na": False, "converters": dict.fromkeys(_columns(place), str)}
        settings = {**settings, **as_text}
    paths = [_literally(path) for path in files]
    return kind, {"data_files": paths, "split": "train", **settings}


def _literally(path: Path) -> str:
    """Escape what `datasets` would take for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
