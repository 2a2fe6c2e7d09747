import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipelines.records import read_records

ROWS = [
    {"utterance": 'Wake me "at 5", please', "parse": "[IN:X é]"},
    {"utterance": "b", "parse": "c"},
]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix in (".jsonl", ".json"):
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "a.tsv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = list(read_records(_write(tmp_path / name, ROWS), ["utterance"]))
    assert [dict(row) for _, row in found] == ROWS
    assert all(str(tmp_path / name) in where for where, _ in found)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.tsv"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path, name: str) -> None:
    file = _write(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match="has no column 'article': it has utterance, parse"):
        list(read_records(file, ["article"]))


def test_values_need_not_be_text(tmp_path: Path) -> None:
    rows = [{"question_id": 81, "turns": ["a", "b"]}]
    for name in ("a.jsonl", "a.parquet"):
        assert [dict(row) for _, row in read_records(_write(tmp_path / name, rows), [])] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{}\nx", r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]", r"a\.jsonl, line 1 is not a JSON object but a list"),
        ("a.jsonl", "\n", "the file has no rows"),
        ("a.csv", "", "the file has no rows"),
        ("a.parquet", "x", "is not Parquet"),
        ("a.txt", "x", r"rows come from \.jsonl, .* not from \.txt"),
        ("a.csv", 'a,b\n"x', r"a\.csv, line \d cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_records(tmp_path / name, []))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv: there is no such file"):
        list(read_records(Path("nowhere.csv"), []))


def test_a_damaged_page_of_parquet_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", ROWS)
    content = bytearray(path.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = b"\xff" * (len(content) - 4 - footer)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged"):
        list(read_records(path, []))


def test_json_that_is_nested_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 50_000)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(read_records(tmp_path / "a.jsonl", []))


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        list(read_records(tmp_path / "a.jsonl", []))
