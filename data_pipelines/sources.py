"""Open a source of text as one dataset with one column, and say what makes it the same source."""

import itertools
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from data_pipelines.config import FilesSource, HubSource, SourceConfig, StdlibSource, row_format
from data_pipelines.files import list_files, read_files
from data_pipelines.samples import read_samples

_NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_DOCUMENTS_PER_WRITE = 256


def open_source(source: SourceConfig, folder: Path) -> datasets.Dataset:
    """Return the documents as a memory-mapped dataset with the column `text`.

    Args:
        source: which text.
        folder: an existing folder for the Arrow file that local files are copied to.

    Raises:
        ValueError: naming the file, or the key, that cannot be read, and why.
    """
    if row_format(source) != "text":
        documents = read_samples(source)
    elif source.hub is not None:
        return _open_hub(source.hub)
    elif source.files is not None:
        documents = read_files(source.files)
    else:
        documents = _read_stdlib(source.stdlib or StdlibSource())
    path = folder / "text.arrow"
    _write_arrow(documents, path)
    return datasets.Dataset.from_file(str(path))


def source_identity(source: SourceConfig) -> dict[str, Any]:
    """Return what must be equal for prepared data to be reused, as JSON data.

    Local files: names, sizes, times of change. The standard library: interpreter version, names,
    sizes. A hub dataset: its name, configuration, split, column and revision.

    Raises:
        ValueError: if local files are missing.
    """
    if source.hub is not None:
        hub, local = source.hub, Path(source.hub.name)
        listing = _listing(sorted(p for p in local.rglob("*") if p.is_file()), local)
        place = [hub.name, hub.config, hub.split, hub.column, hub.revision, listing]
        return {"hub": place, **_format_identity(hub)}
    if source.files is not None:
        listing = _listing(list_files(source.files), Path(source.files.path))
        return {"files": [listing, source.files.column], **_format_identity(source.files)}
    files = _stdlib_files(source.stdlib or StdlibSource())
    sizes = [[str(path.relative_to(_stdlib_root())), path.stat().st_size] for path in files]
    return {"stdlib": [sys.version, sizes]}


def _format_identity(place: FilesSource | HubSource) -> dict[str, Any]:
    """Say what rows are, unless they are plain documents: that is how it was before formats."""
    if place.format == "text":
        return {}
    return {"format": [place.format, place.chat_template]}


def _listing(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    stats = ((path, path.stat()) for path in files)
    return [[str(path.relative_to(root)), s.st_size, s.st_mtime_ns] for path, s in stats]


def _stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib_files(source: StdlibSource) -> list[Path]:
    """Return the library's own sources, sorted; tests and installed packages are not among them."""
    root = _stdlib_root()
    budget = float("inf") if source.max_megabytes is None else source.max_megabytes * 1e6
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_STDLIB]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    chosen = []
    for path in sorted(found):
        budget -= path.stat().st_size
        if budget < 0:
            break
        if path.stat().st_size:
            chosen.append(path)
    return chosen


def _read_stdlib(source: StdlibSource) -> Iterator[str]:
    for path in _stdlib_files(source):
        with tokenize.open(path) as file:  # honours the coding cookie that a few files have
            yield file.read()


def _open_hub(hub: HubSource) -> datasets.Dataset:
    try:
        dataset = datasets.load_dataset(
            hub.name, hub.config, split=hub.split, revision=hub.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data.source.hub.name {hub.name!r} cannot be loaded: {reason}") from None
    feature = dataset.features.get(hub.column)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(
            f"data.source.hub.column {hub.column!r} is not a column of text of {hub.name} "
            f"(it has {', '.join(dataset.column_names)})"
        )
    dataset = dataset.select_columns([hub.column])
    return dataset if hub.column == "text" else dataset.rename_column(hub.column, "text")


def _write_arrow(documents: Iterable[str], path: Path) -> None:
    schema = pa.schema({"text": pa.large_string()})
    documents = iter(documents)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while some := list(itertools.islice(documents, _DOCUMENTS_PER_WRITE)):
            writer.write_batch(pa.record_batch([pa.array(some, pa.large_string())], schema=schema))
