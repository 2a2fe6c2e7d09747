"""Instruction data at rest: the rows of files or of a hub dataset, as the JSON text of samples."""

from collections.abc import Iterator

from data_pipelines.config import SourceConfig
from data_pipelines.files import list_files
from data_pipelines.formats import columns_of, sample_text
from data_pipelines.records import Record, hub_records, read_records


def read_samples(source: SourceConfig) -> Iterator[str]:
    """Yield every row of a source whose format is not text, in order.

    Raises:
        ValueError: naming the file and the row that is not as the format says.
        RuntimeError: if a hub dataset cannot be had.
    """
    place = source.files or source.hub
    assert place is not None, "only files and hub have a format"
    for where, row in _rows(source):
        yield sample_text(row, place.format, where, chat_template=place.chat_template)


def _rows(source: SourceConfig) -> Iterator[tuple[str, Record]]:
    if source.files is not None:
        for path in list_files(source.files):
            yield from read_records(path, columns_of(source.files.format))
    elif source.hub is not None:
        hub = source.hub
        columns = columns_of(hub.format)
        yield from hub_records(hub.name, hub.config, hub.split, columns, hub.revision)
