"""Sources that are read while training: `datasets` with streaming=True, local or of the hub."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from data_pipelines.config import FilesSource, HubSource, SourceConfig
from data_pipelines.files import DEFAULT_COLUMN, list_files
from data_pipelines.formats import columns_of, sample_text
from data_pipelines.json_row import checked_text, json_row
from data_pipelines.records import Record, check_columns

JSON, CSV = "json", "csv"
_BUILDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".jsonl": (JSON, "text", {"sample_by": "line", "encoding": "utf-8-sig"}),
    ".json": (JSON, "text", {"sample_by": "line", "encoding": "utf-8-sig"}),
    ".parquet": ("parquet", "parquet", {}),
    ".csv": (CSV, "csv", {}),
    ".tsv": (CSV, "csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}
"""Kind of file, builder of `datasets` and its settings, by suffix. JSON is read line by line here:
its builder makes one type of all that a column holds, and texts beside a number become JSON."""
_ONE_TEXT = ("text", "text", {"sample_by": "document", "encoding": "utf-8-sig"})


@dataclass(frozen=True, slots=True, eq=False)
class StreamSource:
    """An open source: rows in shards, which are files."""

    name: str
    """For messages."""
    place: FilesSource | HubSource
    kind: str
    """Of its files."""
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

    def _documents(self, table: pa.Table, shard: str, first: int) -> list[str | None]:
        columns = [_values(column) for column in table.columns]
        rows = (
            dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)
        )
        return [self._document(row, f"{shard}, row {n}") for n, row in enumerate(rows, first + 1)]

    def _document(self, row: Record, where: str) -> str | None:
        columns = _columns(self.place)
        if self.kind == JSON:
            if not row["text"].strip():
                return None
            row = json_row(row["text"], where)
            check_columns(row, columns, where)
        if self.place.format == "text":
            value = row[columns[0]]
            return None if value is None else checked_text(value, columns[0], where)
        if self.kind == CSV and not row[columns[-1]]:
            raise ValueError(f"{where}: {columns[-1]} is empty, or the row is too short")
        return sample_text(row, self.place.format, where, chat_template=self.place.chat_template)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; `datasets` keeps what has no one type as JSON."""
    values: list[Any] = column.to_pylist()
    if isinstance(column.type, pa.JsonType):
        return [None if value is None else json.loads(value) for value in values]
    if isinstance(column.type, pa.ListType) and isinstance(column.type.value_type, pa.JsonType):
        return [value and [json.loads(item) for item in value] for value in values]
    return values


def open_stream(source: SourceConfig, name: str) -> StreamSource:
    """Open a source with streaming=true; nothing but its first rows is read.

    Raises:
        ValueError: if it cannot be opened, has files of several kinds, or lacks a column.
    """
    place = source.files or source.hub
    assert place is not None, "only files and hub are streamed"
    kind, builder, settings = _how(place)
    try:
        dataset = datasets.load_dataset(builder, streaming=True, **settings)
        present = dataset.column_names or list(next(iter(dataset), {}))
        if kind == JSON:
            lines = ((n, row["text"]) for n, row in enumerate(dataset, 1) if row["text"].strip())
            present = list(next((json_row(text, f"row {n}") for n, text in lines), {}))
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
    read = dataset if kind == JSON else dataset.select_columns(wanted)
    return StreamSource(name, place, kind, read, tuple(paths))


def _columns(place: FilesSource | HubSource) -> tuple[str, ...]:
    if place.format != "text":
        return columns_of(place.format)
    return (place.column or DEFAULT_COLUMN,)


def _how(place: FilesSource | HubSource) -> tuple[str, str, dict[str, Any]]:
    """Return the kind of files, and what `load_dataset` is told."""
    if isinstance(place, HubSource):
        told = {"name": place.config, "split": place.split, "revision": place.revision}
        return "hub", place.name, told
    files = list_files(place)
    known = [_builder(path, place) for path in files]
    kinds = {kind for kind, _, _ in known}
    if len(kinds) > 1:
        raise ValueError(
            f"data.source.files.path {place.path} has files of several kinds "
            f"({', '.join(sorted(kinds))}), which cannot be streamed as one source: choose with "
            "data.source.files.pattern"
        )
    kind, builder, settings = known[0]
    if kind == CSV:  # "NA" is a word, 007 is not 7, and a comma at the end shifts nothing
        as_text = {"keep_default_na": False, "converters": dict.fromkeys(_columns(place), str)}
        settings = {**settings, **as_text, "index_col": False}
    paths = [_literally(path) for path in files]
    return kind, builder, {"data_files": paths, "split": "train", **settings}


def _builder(path: Path, place: FilesSource) -> tuple[str, str, dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".tsv" and place.format == "text":
        return _ONE_TEXT  # plain text with tabs in it, as where it is prepared
    return _BUILDERS.get(suffix, _ONE_TEXT)


def _literally(path: Path) -> str:
    """Escape what `datasets` would take for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
