"""Tokenizer files after every accident, where data is prepared with them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.__main__ import main as prepare
from tests.fuzz.cases import cases
from tests.fuzz.command import judge, run
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.fuzz.folders import nothing_lost
from tests.fuzz.test_data import ROWS, _jsonl

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of data that is prepared with the tokenizer in `tokenizer` beside it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text.jsonl").write_bytes(_jsonl(ROWS))
    section = {
        "source": {"files": {"path": str(folder / "text.jsonl")}},
        "tokenizer": {"sentencepiece": {"vocab_size": 310}},
        "seq_len": 16,
        "valid_fraction": 0.2,
        "cache_folder": str(folder / "cache"),
        "num_processes": 1,
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(section))
    assert judge(run(prepare, [str(path)]))
    (made,) = (folder / "cache").glob("*/tokenizer")
    shutil.copytree(made, folder / "whole")
    section["tokenizer"] = {"path": str(folder / "tokenizer")}
    path.write_text(yaml.safe_dump(section))
    return path


@cases(60)
@given(st.data())
def test_a_damaged_tokenizer_is_named_or_read(config: Path, data: st.DataObject) -> None:
    folder = config.parent / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(config.parent / "whole", folder)
    kept = data.draw(st.sampled_from([FILES, FILES[:1], FILES[1:], FILES[1:2], FILES[2:], ()]))
    for name in FILES:
        if name not in kept:
            (folder / name).unlink()
    for name in data.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=2)):
        whole = (config.parent / "whole" / name).read_bytes()
        damaged = damaged_bytes(whole) if name.endswith(".model") else damaged_json(whole)
        (folder / name).write_bytes(data.draw(damaged))
    how = data.draw(st.sampled_from(["folder", "folder", "folder", "file", "swapped", "gguf"]))
    place = folder
    if how == "file":
        place = folder / data.draw(st.sampled_from(FILES))
    elif how == "swapped":
        one, other = (config.parent / "whole" / name for name in FILES[:2])
        (folder / FILES[0]).write_bytes(other.read_bytes())
        (folder / FILES[1]).write_bytes(one.read_bytes())
    elif how == "gguf":
        junk = data.draw(damaged_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64)))
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "model.gguf").write_bytes(junk)
    with nothing_lost(folder):
        judge(run(prepare, [str(config), f"data.tokenizer.path={place}"]))


def test_the_tokenizer_is_one_that_hugging_face_reads_too(config: Path) -> None:
    # Else the cases above would try less than they seem to.
    values = json.loads((config.parent / "whole" / "tokenizer.json").read_text())
    assert values["model"]["type"] == "BPE"
