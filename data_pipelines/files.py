"""Read local files: every format becomes a stream of documents, every fault names file and line."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_pipelines.config import FilesSource
from data_pipelines.json_row import json_row

DEFAULT_COLUMN = "text"


def list_files(source: FilesSource) -> list[Path]:
    """Return the files of the source in a fixed order.

    Raises:
        ValueError: if there are none, or if a setting of the source would be ignored.
    """
    root = Path(source.path)
    if root.is_file():
        if source.pattern is not None:
            raise ValueError(
                f"data.source.files.pattern {source.pattern!r} chooses among the files of a "
                f"folder, but {root} is a file: remove the pattern"
            )
        files = [root]
    elif root.is_dir():
        files = _matching(root, source.pattern or "*")
    else:
        raise ValueError(f"data.source.files.path: there is no file or folder {root}")
    if not files:
        pattern = f" that match {source.pattern!r}" if source.pattern else ""
        raise ValueError(f"data.source.files.path: {root} has no files{pattern}")
    if source.column is not None and all(_reader(path) is _read_text for path in files):
        raise ValueError(
            f"data.source.files.column {source.column!r} is for JSONL, Parquet and CSV, but "
            f"{files[0]} is read as one text: remove the column or rename the file"
        )
    return files


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in root.rglob(pattern) if _is_visible(path, root))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"data.source.files.pattern {pattern!r} is no pattern of files in a folder ({error}): "
            'write one such as "*.jsonl"'
        ) from None


def read_files(source: FilesSource) -> Iterator[str]:
    """Yield the documents of all files, in order; rows with an empty text are documents too.

    Raises:
        ValueError: naming the file, and the line or row, that cannot be read, and why.
    """
    for path in list_files(source):
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty: remove it, or {_LEAVE_OUT}")
        yield from _reader(path)(path, source.column or DEFAULT_COLUMN)


_LEAVE_OUT = "leave it out with data.source.files.pattern"


def _is_visible(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.is_file() and not hidden


def _reader(path: Path) -> Callable[[Path, str], Iterator[str]]:
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_jsonl,
        ".parquet": _read_parquet,
        ".csv": _read_csv,
    }
    return readers.get(path.suffix.lower(), _read_text)


def _read_text(path: Path, column: str) -> Iterator[str]:
    yield _decode(path.read_bytes(), str(path))


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            remedy = f"write one object a line, or {_LEAVE_OUT}"
            row = json_row(_decode(line, where), where, remedy)
            _check_column(column, list(row), where)
            yield _checked(row[column], column, where)


def _read_csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than one long document
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            _check_column(column, list(rows.fieldnames or ()), str(path))
            for row in rows:
                yield _checked(row[column], column, f"{path}:{rows.line_num}")
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(str(path), error)) from None
        except csv.Error as error:
            raise ValueError(f"{path} is not CSV after line {rows.line_num}: {error}") from None


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        file = pa.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from None
    with file:
        _check_column(column, file.schema_arrow.names, str(path))
        for number, value in enumerate(_values(path, file, column), start=1):
            yield _checked(value, column, f"{path} row {number}")


def _values(path: Path, file: pa.parquet.ParquetFile, column: str) -> Iterator[Any]:
    try:
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}): copy it again, or {_LEAVE_OUT}") from None


def _check_column(column: str, present: list[str], where: str) -> None:
    if column not in present:
        raise ValueError(
            f"{where} has no column {column!r} (it has {', '.join(present) or 'none'}): "
            "set data.source.files.column"
        )


def _checked(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: column {column!r} holds {type(value).__name__}, not text: remove the row, "
            "or set data.source.files.column"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: column {column!r} is not Unicode text: {error}") from None
    return value


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(where, error)) from None


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    return (
        f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start}): "
        f"convert it, or {_LEAVE_OUT}"
    )
