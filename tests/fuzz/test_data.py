"""Data files after every accident, given to the command that prepares them."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.__main__ import main as prepare
from tests.fuzz.cases import cases
from tests.fuzz.command import judge, run
from tests.fuzz.damage import ODD_TEXTS, damaged_bytes, odd_values
from tests.fuzz.folders import nothing_lost

TEXTS = [f"def name_{i}(value):\n    return value * {i} + other  # é\n" * 4 for i in range(30)]
ROWS: list[dict[str, Any]] = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def _jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: list[Any], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _parquet(table: pa.Table) -> bytes:
    file = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, file, row_group_size=10)
    return file.getvalue().to_pybytes()


def _arrow(table: pa.Table) -> bytes:
    file = pa.BufferOutputStream()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue().to_pybytes()


TABLE = pa.Table.from_pylist(ROWS)
WHOLE = {
    "part.jsonl": _jsonl(ROWS),
    "part.json": _jsonl(ROWS),
    "part.csv": _csv(ROWS),
    "part.parquet": _parquet(TABLE),
    "part.arrow": _arrow(TABLE),
    "part.txt": "\n".join(TEXTS).encode(),
}
"""A sound file of each format."""

ODD_TABLES: list[Callable[[], pa.Table]] = [
    lambda: pa.table({"text": pa.array([], pa.string())}),
    lambda: pa.table({"text": pa.nulls(5)}),
    lambda: pa.table({"text": [1, 2, None]}),
    lambda: pa.table({"text": [["a"], ["b"]]}),
    lambda: pa.table({"text": [b"\xff\xfe", b"a"]}),
    lambda: pa.table({"text": [{"a": "b"}]}),
    lambda: pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}),
    lambda: pa.table({"words": ["a"]}),
    lambda: pa.table({}),
    lambda: pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
    lambda: pa.table({"text": pa.array([10**15], pa.timestamp("us"))}),
    lambda: pa.table({"text": ["", "", ""]}),
    lambda: pa.table({"text": ["a\x00b" * 50, "\ufeffx" * 50, "\u2581" * 90, "x" * 200_000]}),
]

LONG = 11 * 2**20
"""Bytes of a gigantic line."""
ODD_FILES = [
    b"", b"\n" * 50, b"\xef\xbb\xbf" + _jsonl(ROWS), _jsonl(ROWS).replace(b"\n", b"\r\n"),
    _jsonl(ROWS).replace(b"\n", b"\r"), _csv(ROWS, ";"), _csv(ROWS, "\t"), b"text\n",
    b"text\n\"open\n", b"id,text\n1\n", b"id,text\n1,2,3\n", b"text,text\na,b\n",
    b"\xff\xfet\x00e\x00x\x00t\x00", b"text\n" + b"a\x00b\n" * 50, b'{"text": null}\n',
    b'{"text": 7}\n', b'{"text": ["a"]}\n', b'{"text": "\\ud800"}\n',
    b'{"text": "a", "text": 3}\n', b'[{"text": "a"}]\n', b'"text"\n',
    b'{"text": "a"} {"text": "b"}\n', b"NaN\n", b'{"text": ' + b"[" * 50_000,
    b'{"n": ' + b"9" * 5000 + b', "text": "a"}\n', b'{"text": "\xc3\x28"}\n',
    b'{"text": "' + b"\\u0000" * 300 + b'"}\n',
    b'{"text": "' + b"\xf0\x9f\x98\x80" * 500 + b'"}\n',
]  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a file's name and its bytes."""
    name = draw(st.sampled_from(list(WHOLE)))
    kind = draw(st.sampled_from(["damage", "damage", "odd", "rows", "table", "swap", "long"]))
    if kind == "damage":
        return name, draw(damaged_bytes(WHOLE[name]))
    if kind == "swap":  # another format's content
        return name, WHOLE[draw(st.sampled_from(list(WHOLE)))]
    if kind == "rows":
        row = draw(st.one_of(odd_values, st.fixed_dictionaries({"text": odd_values})))
        at = draw(st.integers(0, len(ROWS)))
        return "part.jsonl", _jsonl([*ROWS[:at], row, *ROWS[at:]])
    if kind == "table":
        table = draw(st.sampled_from(ODD_TABLES))()
        return "part.parquet", _parquet(table)
    if kind == "long" and draw(st.booleans()):  # seldom: each takes a second
        line = draw(st.sampled_from([b"a", b"ab ", b"\x00", b"\xff", b" "])) * LONG
        line = line[:LONG]
        return name, b'{"text": "' + line + b'"}\n' if "json" in name else b"text\n" + line
    return name, draw(st.sampled_from(ODD_FILES))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of data whose text lies in `text` beside it, in which something sound is, too."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    section = {
        "source": {"files": {"path": str(folder / "text")}},
        "tokenizer": {"sentencepiece": {"vocab_size": 310}},
        "seq_len": 16,
        "valid_fraction": 0.2,
        "cache_folder": str(folder / "cache"),
        "num_processes": 1,
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(section))
    (folder / "text" / "sound.jsonl").write_bytes(_jsonl(ROWS))
    assert judge(run(prepare, [str(path)]))
    return path


@cases(120)
@given(files(), st.booleans())
def test_a_damaged_file_is_named_or_read(
    config: Path, file: tuple[str, bytes], beside: bool
) -> None:
    name, content = file
    text = config.parent / "text"
    path = text / name
    path.write_bytes(content)
    arguments = [] if beside else [f"data.source.files.path={path}"]
    try:
        with nothing_lost(text, config.parent / "cache"):
            judge(run(prepare, [str(config), *arguments]))
    finally:
        path.unlink()
    assert not list((config.parent / "cache").glob("*.tmp"))


def folder_with(path: Path) -> Path:
    path.mkdir()
    return path


ODD_PLACES: list[Callable[[Path], None]] = [
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to(path.parent),
    lambda path: path.symlink_to("/dev/null"),
    lambda path: path.mkdir(),
    lambda path: os.mkfifo(path),
    lambda path: folder_with(path).joinpath("part.jsonl").touch(),
    lambda path: folder_with(path).joinpath("up").symlink_to(".."),
]


@cases(20)
@given(
    st.sampled_from(ODD_PLACES),
    st.sampled_from(["loop.jsonl", "loop.txt", "loop.parquet", "loop", "a" * 200, "é\n.csv"]),
    st.sampled_from(["", "*", "*.jsonl", "[", "**", "..", "../*", "/x", "**/*", "a" * 3000]),
    st.one_of(st.just("text"), st.sampled_from(ODD_TEXTS)),
    st.sampled_from(["", "whole"]),
)
def test_an_odd_place_pattern_or_column_is_named_or_read(
    config: Path, make: Callable[[Path], None], name: str, pattern: str, column: str, root: str
) -> None:
    text = config.parent / "text"
    path = text / name
    make(path)
    arguments = [f"data.source.files.pattern={pattern}"] if pattern else []
    arguments += [f"data.source.files.column={column}"] if column != "text" else []
    arguments += [] if root else [f"data.source.files.path={path}"]
    try:
        with nothing_lost(text / "sound.jsonl", config.parent / "cache"):
            judge(run(prepare, [str(config), *_words(arguments)]))
    finally:
        _remove(path)


def _words(arguments: list[str]) -> list[str]:
    return [a for a in arguments if not any(c in a for c in "\x00\ud800\udcff")]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()


@cases(20)
@given(files(), st.sampled_from(["spec_bench", "cnn_dm", "human_eval", "top_v2"]))
def test_a_damaged_data_set_of_the_hub_form_is_named_or_read(
    config: Path, file: tuple[str, bytes], name: str
) -> None:
    folder = config.parent / f"hub_{name}"
    folder.mkdir(exist_ok=True)
    path = folder / file[0]
    path.write_bytes(file[1])
    changes = ["data.source.files=null", f"data.source.hub.name={folder}"]
    try:
        with nothing_lost(folder):
            judge(run(prepare, [str(config), *changes]))
    finally:
        path.unlink()
