"""Rows of small data sets as dictionaries: local JSONL, Parquet, CSV and TSV files, or the hub."""

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from data_pipelines.json_row import json_row

Record = Mapping[str, Any]
"""One row: values by column."""


def read_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a local file, each after the words that name its place.

    Args:
        path: .jsonl (or .json, one object a line), .parquet, .csv or .tsv.
        columns: those that every row must have.

    Raises:
        ValueError: naming the file, and the line or row, that cannot be read, and why.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    readers: dict[str, Callable[[Path], Iterator[tuple[str, Record]]]] = {
        ".jsonl": _json_lines,
        ".json": _json_lines,
        ".parquet": _parquet,
        ".csv": _csv,
        ".tsv": _csv,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: rows come from {', '.join(readers)}, not from {path.suffix or 'a bare name'}"
        )
    is_empty = True
    for where, row in reader(path):
        is_empty = False
        check_columns(row, columns, where)
        yield where, row
    if is_empty:
        raise ValueError(f"{path}: the file has no rows")


def hub_records(
    name: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    revision: str | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a data set of the hub as `read_records` does.

    Raises:
        RuntimeError: if it cannot be had: there is no connection, no such set.
        ValueError: if a column is missing.
    """
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(f"{name} cannot be had from the hub ({reason})") from None
    check_columns(dict.fromkeys(rows.column_names), columns, name)
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def check_columns(row: Record, columns: Sequence[str], where: str) -> None:
    """Check that a row has the columns.

    Raises:
        ValueError: naming the place and what it has.
    """
    for column in columns:
        if column not in row:
            present = ", ".join(row) or "none"
            raise ValueError(f"{where} has no column {column!r}: it has {present}")


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        if line.strip():
            yield where, json_row(line, where)


def read_text(path: Path) -> str:
    """Return what a file of text holds, without a byte-order mark.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): convert it") from None


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than some articles
    tabs = path.suffix.lower() == ".tsv"
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True, **dialect)
        try:
            for row in rows:
                yield f"{path}, line {rows.line_num}", row
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num + 1} cannot be read: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        file = pa.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from None
    with file:
        for number, row in enumerate(_rows(path, file), 1):
            yield f"{path}, row {number}", row


def _rows(path: Path, file: pa.parquet.ParquetFile) -> Iterator[Record]:
    try:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}): copy it again") from None
