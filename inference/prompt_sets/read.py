"""From what `prompts=` says to prompts."""

import json
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.records import Record, hub_records, read_records, read_text
from inference.prompt_sets.prompt import Prompt
from inference.prompt_sets.sets import CUSTOM, SETS, HubPlace, PromptSet


def read_prompt_set(spec: str) -> list[Prompt]:
    """Return the prompts of a file, or of a set that has a name.

    Args:
        spec: FILE, one prompt a line, or .jsonl with a key prompt; SET:FILE, the rows of a set in a
            local file; or SET alone, which is fetched from the hub.

    Raises:
        ValueError: naming the file and line, column or set at fault.
        RuntimeError: if the hub cannot be reached.
    """
    name, colon, file = spec.partition(":")
    if name in SETS:
        rows = _local(spec, SETS[name], Path(file)) if colon else _hub(name, SETS[name].hub)
        return _prompts(SETS[name], rows)
    path = Path(spec)
    if not path.is_file():
        raise ValueError(
            f"prompts={spec}: there is no such file, and no such set ({', '.join(SETS)}; a local "
            "file of one is SET:FILE)"
        )
    return _own_rows(path) if path.suffix == ".jsonl" else _lines(path)


def _prompts(kind: PromptSet, rows: Iterable[tuple[str, Record]]) -> list[Prompt]:
    return [kind.prompt(row, where, number) for number, (where, row) in enumerate(rows, 1)]


def _local(spec: str, kind: PromptSet, file: Path) -> Iterable[tuple[str, Record]]:
    if not file.is_file():
        raise ValueError(f"prompts={spec}: there is no such file")
    return read_records(file, kind.columns)


def _hub(name: str, place: HubPlace | None) -> Iterable[tuple[str, Record]]:
    if place is None:
        raise ValueError(f"prompts={name}: the hub does not have it; name its file, {name}:FILE")
    try:
        yield from hub_records(place.name, place.config, place.split, SETS[name].columns)
    except RuntimeError as error:
        raise RuntimeError(
            f"prompts={name}: {error}; check the connection, or give a local file of it, as in "
            f"prompts={name}:FILE.parquet"
        ) from None


def _lines(path: Path) -> list[Prompt]:
    lines = enumerate(read_text(path).splitlines(), 1)
    prompts = [Prompt(str(number), line) for number, line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts={path}: the file is empty; write one prompt a line")
    return prompts


def _own_rows(path: Path) -> list[Prompt]:
    """Read JSON lines of one's own; what is no object with a prompt may be those of a set."""
    prompts = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            prompts.append(CUSTOM.prompt(_own_row(line, where, path), where, number))
    if not prompts:
        raise ValueError(f"prompts={path}: the file is empty; write one object a line")
    return prompts


def _own_row(line: str, where: str, path: Path) -> Record:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return row
    if isinstance(row, dict):
        for name, kind in SETS.items():
            if row.keys() >= set(kind.columns):
                raise ValueError(f"{where} is a row of {name}: write prompts={name}:{path}")
    raise ValueError(f'{where} is not an object such as {{"prompt": "some text"}}')
