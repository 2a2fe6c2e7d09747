import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.config import FilesSource
from data_pipelines.files import list_files, read_files

TEXTS = ["one\n  two", 'said "three", then\r\nfour', "日本語"]


def write_jsonl(path: Path, column: str = "text") -> None:
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in TEXTS))


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])


def write_parquet(path: Path, texts: list[Any] = TEXTS) -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path)


def read(path: Path, **settings: Any) -> list[str]:
    return list(read_files(FilesSource(path=str(path), **settings)))


def test_a_text_file_is_one_document_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXTS[1].encode())
    assert read(path) == [TEXTS[1]]


def test_rows_of_jsonl_csv_and_parquet_are_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    write_csv(tmp_path / "b.csv")
    write_parquet(tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        assert read(tmp_path / name) == TEXTS


def test_a_csv_field_may_be_longer_than_a_book(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in read(path)] == [200_000]


def test_a_folder_of_mixed_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_csv(tmp_path / "sub" / "b.csv")
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "z.md").write_text("last")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert read(tmp_path) == [*TEXTS, *TEXTS, "last"]


def test_a_pattern_chooses_files_and_a_column_chooses_the_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", column="body")
    (tmp_path / "b.txt").write_text("not this")
    assert read(tmp_path, pattern="*.jsonl", column="body") == TEXTS


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufefftext\nx\n".encode())
    (tmp_path / "b.txt").write_bytes("\ufeffx".encode())
    assert read(tmp_path) == ["x", "x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty: remove it"),
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 text \(byte 0xe9 at 3\)"),
        ("a.jsonl", b'{"text": "x"}\n\xe9\n', r"a.jsonl:2 is not UTF-8 text \(byte 0xe9 at 0\)"),
        ("a.csv", b"text\n\xe9\n", "a.csv is not UTF-8 text"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', "a.jsonl:2 has no column 'text'"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": 3}\n', "a.jsonl:3: column 'text' holds int"),
        ("a.jsonl", b'{"text": "x"', "a.jsonl:1 is not JSON"),
        ("a.json", b'["x"]', "a.json:1 is not a JSON object but a list"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: column 'text' is not Unicode text"),
        ("a.csv", b"body\nx\n", r"a.csv has no column 'text' \(it has body\)"),
        ("a.csv", b"id,text\n1,x\n2\n", "a.csv:3: column 'text' holds NoneType"),
        ("a.csv", b'text\n"x', "a.csv is not CSV after line 1"),
        ("a.parquet", b"no", "a.parquet is not Parquet"),
        ("a.jsonl", b'{"text": ' + b"[" * 50_000, "a.jsonl:1 is not JSON"),
    ],
)
def test_a_fault_names_the_file_and_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_fault_in_parquet_names_the_file_and_the_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x", None])
    with pytest.raises(ValueError, match=r"a.parquet row 2: column 'text' holds NoneType"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"a.parquet has no column 'body' \(it has id, text\)"):
        read(tmp_path, column="body")


def test_a_damaged_page_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ["x" * 100, "y" * 100])
    content = bytearray(path.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = b"\xff" * (len(content) - 4 - footer)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere"}, "there is no file or folder"),
        ({"path": "empty"}, "empty has no files"),
        ({"path": "a.txt", "pattern": "*"}, "a.txt is a file: remove the pattern"),
        ({"path": ".", "pattern": "*.csv"}, "has no files that match '\\*.csv'"),
        ({"path": ".", "pattern": "/x"}, "pattern '/x' is no pattern of files in a folder"),
        ({"path": ".", "column": "body"}, "column 'body' is for JSONL, Parquet and CSV"),
    ],
)
def test_a_source_without_files_or_with_an_idle_setting_is_refused(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    path = str(tmp_path / settings["path"])
    with pytest.raises(ValueError, match=message):
        list_files(FilesSource(**(settings | {"path": path})))
