"""Checkpoints and model folders after every accident, given to all that read them."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.__main__ import main as inference
from parallel.convert.__main__ import main as convert
from tests.fuzz.cases import cases
from tests.fuzz.command import Outcome, judge, run
from tests.fuzz.damage import damaged_bytes, damaged_json, damaged_value, flipped
from tests.fuzz.folders import contents, lost, nothing_lost
from trainer.__main__ import main as train


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A folder for one case after another."""
    return tmp_path


def fresh(trained: Path, folder: Path, name: str) -> Path:
    """Return a fresh copy of a part of what was trained."""
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(trained / name, target, symlinks=True)
    return target


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def damaged_tensors(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a safetensors file whose header lies, or whose bytes had an accident."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    except (struct.error, ValueError):  # damaged before
        return damaged_bytes(content)

    def joined(value: object) -> bytes:
        text = json.dumps(value, default=str).encode()
        return struct.pack("<Q", len(text)) + text + rest

    lengths = st.sampled_from([0, 1, length + 1, 2**31, 2**63, 2**64 - 1])
    lies = lengths.map(lambda n: struct.pack("<Q", n) + content[8:])
    return st.one_of(
        damaged_value(header).map(joined), lies, flipped(content), damaged_bytes(content)
    )


def is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def renamed(file: Path) -> None:
    file.rename(file.with_name(file.name + ".bak"))


def replaced_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def looped(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


ACCIDENTS: list[Callable[[Path], None]] = [Path.unlink, renamed, replaced_by_folder, looped]


def damage(data: st.DataObject, folder: Path) -> bool:
    """Damage one file of a folder, or a few; return whether a tensor's bytes may be all that is."""
    only_content = True
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2]))):
        file = data.draw(st.sampled_from(files_of(folder)))
        content = file.read_bytes()
        kind = data.draw(st.sampled_from(["content"] * 5 + ["accident", "swap", "extra"]))
        only_content &= kind == "content"
        if kind == "accident":
            data.draw(st.sampled_from(ACCIDENTS))(file)
        elif kind == "swap":
            other = data.draw(st.sampled_from(files_of(folder)))
            file.write_bytes(other.read_bytes())
        elif kind == "extra":
            file.with_name(data.draw(st.sampled_from(EXTRAS))).write_bytes(content)
        else:
            strategy = damaged_bytes
            if file.suffix == ".safetensors":
                strategy = damaged_tensors
            elif file.suffix == ".json" and is_json(content):
                strategy = damaged_json
            file.write_bytes(data.draw(strategy(content)))
    return only_content


EXTRAS = [
    "zzz", "step_99999999", "model-00002-of-00001.safetensors", "shard-00009.safetensors",
    "x.gguf", "config.json", "latest", "zero", "manifest.json.tmp", "tokenizer.model",
]  # fmt: skip


def latest_of(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / (run_folder / "checkpoints/latest").read_text().strip()


@cases(30)
@given(st.data())
def test_a_damaged_run_is_not_resumed_and_nothing_of_it_is_lost(
    trained: Path, copy: Path, data: st.DataObject
) -> None:
    folder = fresh(trained, copy, "run")
    part = data.draw(st.sampled_from([latest_of(folder), latest_of(folder), folder]))
    damage(data, part)
    arguments = [str(trained / "config.yaml"), f"run_folder={folder}", "parallel.device=cpu"]
    arguments += ["resume=strict"]  # auto puts damaged checkpoints aside, under another name
    before = contents(folder)
    with nothing_lost(trained / "data"):
        succeeded = judge(run(train, arguments))
    changed = lost(folder, before)
    if succeeded:  # it may bring its own records up to date
        changed = {name for name in changed if name.startswith("checkpoints/step_")}
    assert not changed, f"changed or deleted: {sorted(changed)}"


def read_everywhere(data: st.DataObject, source: Path, target: Path) -> Outcome:
    """Give a folder to one of the commands that read models."""
    shutil.rmtree(target, ignore_errors=True)
    command = data.draw(
        st.sampled_from(["generate", "generate", "perplexity", "export", "convert"])
    )
    if command == "convert":
        kind = data.draw(st.sampled_from(["dcp", "zero", "hf"]))
        outcome = run(convert, [str(source), str(target), f"to={kind}"])
    elif command == "export":
        outcome = run(inference, ["export", str(source), str(target)])
    else:
        text = source.parent / "prompts.txt"
        text.write_text("def f(x):\n")
        key = "prompts" if command == "generate" else "texts"
        more = ["max_new_tokens=2"] if command == "generate" else []
        outcome = run(inference, [command, str(source), f"{key}={text}", *more])
    if not judge(outcome):
        assert not target.exists(), "half of a folder was left"
        assert not target.with_name(target.name + ".tmp").exists(), "half of a folder was left"
    return outcome


@cases(80)
@given(st.data())
def test_a_damaged_checkpoint_is_named_or_read(
    trained: Path, copy: Path, data: st.DataObject
) -> None:
    folder = fresh(trained, copy, "run")
    damage(data, data.draw(st.sampled_from([latest_of(folder), latest_of(folder), folder])))
    source = data.draw(st.sampled_from([folder, folder / "checkpoints"]))
    with nothing_lost(folder):
        read_everywhere(data, source, copy / "target")


@cases(40)
@given(st.data())
def test_a_changed_byte_of_a_checkpoint_is_told_from_a_whole_one(
    trained: Path, copy: Path, data: st.DataObject
) -> None:
    folder = fresh(trained, copy, "run")
    file = data.draw(st.sampled_from(files_of(latest_of(folder))))
    content = file.read_bytes()
    file.write_bytes(data.draw(flipped(content).filter(lambda changed: changed != content)))
    with nothing_lost(folder):
        outcome = read_everywhere(data, folder, copy / "target")
    assert outcome.status, f"{file} is changed and nothing was said"


@cases(80)
@given(st.data())
def test_a_damaged_model_folder_is_named_or_read(
    trained: Path, copy: Path, data: st.DataObject
) -> None:
    folder = fresh(trained, copy, "exported")
    if data.draw(st.booleans()):
        shard(data, folder)
    damage(data, folder)
    with nothing_lost(folder):
        read_everywhere(data, folder, copy / "target")


def shard(data: st.DataObject, folder: Path) -> None:
    """Give a folder an index, one that is right or one that points elsewhere."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    names = [name for name in json.loads(content[8 : 8 + length]) if name != "__metadata__"]
    shard_name = "model-00001-of-00001.safetensors"
    os.rename(folder / "model.safetensors", folder / shard_name)
    places = [
        shard_name, shard_name, f"../{folder.name}/{shard_name}", str(folder / shard_name),
        "../x", "", ".", "config.json", "a" * 5000, "é\x00", 3, None, ["x"],
    ]  # fmt: skip
    other = data.draw(st.sampled_from(places))
    placed = {name: shard_name for name in names} | {names[0]: other}
    index = json.dumps({"metadata": {}, "weight_map": placed})
    (folder / "model.safetensors.index.json").write_text(index)
