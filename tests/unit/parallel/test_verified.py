import errno
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel.verified import find_fault, good_checkpoint, verify
from tests.saved import flip, plant, save, without_checksums

SHARD = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints of steps 3, 6 and 9."""
    for step in (3, 6, 9):
        newest = save(tmp_path / "checkpoints", step)
    return newest


def test_a_checkpoint_as_it_was_saved_is_good(saved: Path) -> None:
    verify(saved)
    assert good_checkpoint(saved) == saved


def test_every_flipped_bit_of_every_file_is_noticed(saved: Path) -> None:
    for path in [p for p in saved.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 40)):
            flip(path, at)
            fault = find_fault(saved)
            assert fault is not None, (path, at)
            assert fault.is_damage
            path.write_bytes(content)
    verify(saved)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: flip(p / "model" / SHARD), f"model/{SHARD} is damaged: its bytes do not have"),
        (lambda p: (p / "optimizer" / SHARD).unlink(), f"optimizer/{SHARD} is missing"),
        (lambda p: flip(p / "manifest.json"), r"manifest\.json is "),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.xxh3").unlink(), "manifest.json is not what manifest.xxh3 says"),
        (lambda p: flip(p / "manifest.xxh3", 0), "manifest.json is not what manifest.xxh3 says"),
        (lambda p: (p / "state.json").write_text("{}"), "state.json has .* bytes instead"),
        (lambda p: shutil.rmtree(p), "no checkpoint at"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_it_offered(
    saved: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(saved)
    with pytest.raises(RuntimeError, match=f"{message}.*step_00000006 is good: take that") as error:
        verify(saved)
    assert "\n" not in str(error.value)


def test_the_first_good_checkpoint_is_offered(saved: Path) -> None:
    flip(saved / "state.json")
    flip(saved.with_name("step_00000006") / "model" / SHARD)
    with pytest.raises(RuntimeError, match=r"state\.json is damaged.*step_00000003 is good"):
        verify(saved)


def test_none_is_offered_where_none_is_good(saved: Path) -> None:
    for step in (3, 6, 9):
        flip(saved.with_name(f"step_{step:08d}") / "state.json")
    with pytest.raises(RuntimeError, match=r"take another checkpoint$"):
        verify(saved)
    with pytest.raises(RuntimeError, match=r"no checkpoint in .* is good.*000009.*000006.*000003"):
        good_checkpoint(saved)
    names = sorted(p.name for p in saved.parent.iterdir())
    assert names == ["latest", *(f"step_{step:08d}" for step in (3, 6, 9))]


def test_only_the_parts_that_will_be_read_are_read(saved: Path) -> None:
    flip(saved / "optimizer" / SHARD)
    verify(saved, ("model",))
    with pytest.raises(RuntimeError, match="optimizer"):
        verify(saved)


def test_checkpoints_from_before_there_were_checksums_load_with_a_warning(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_checksums(saved)
    with caplog.at_level(logging.WARNING):
        assert good_checkpoint(saved) == saved
    assert [r.getMessage() for r in caplog.records] == [
        f"{saved} has no checksums, being old: only sizes were checked"
    ]


def test_an_error_of_the_machine_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("parallel.verified.read_back", refuse)
    with pytest.raises(RuntimeError, match="cannot be read: Permission denied"):
        good_checkpoint(saved)
    assert saved.is_dir()


@pytest.mark.parametrize("name", ["x.pt", ".metadata", "model/pytorch_model.bin", "tokenizer.json"])
def test_a_planted_pickle_is_refused_by_name_and_not_run(
    saved: Path, tmp_path: Path, name: str
) -> None:
    plant(saved / name, tmp_path / "fuse")
    with pytest.raises(RuntimeError, match=f"{name} is a pickle, .* none of it was loaded"):
        good_checkpoint(saved)
    assert not (tmp_path / "fuse").exists()
    assert (saved.parent / "latest").read_text() == f"{saved.name}\n"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_place_of_a_shard_is_refused(saved: Path, protocol: int) -> None:
    (saved / "model" / SHARD).write_bytes(pickle.dumps({"weight": 1}, protocol))
    with pytest.raises(RuntimeError, match=f"{SHARD} is a pickle"):
        verify(saved)


def test_tensors_that_the_manifest_does_not_know_are_refused(saved: Path) -> None:
    shutil.copy(saved / "model" / SHARD, saved / "model" / "shard-2.safetensors")
    with pytest.raises(RuntimeError, match=r"shard-2\.safetensors is not in manifest\.json"):
        verify(saved)


def test_a_note_in_a_checkpoint_is_no_harm(saved: Path) -> None:
    (saved / "notes.txt").write_text("the good one")
    verify(saved)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"files": [], "tensors": {}}', '{"files": {"../x": 3}}', ""]
)
def test_a_manifest_that_says_nonsense_is_damage(saved: Path, content: str) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(RuntimeError, match=r"manifest\.json is damaged \("):
        verify(saved)


def test_a_manifest_may_not_point_outside_of_its_folder(saved: Path) -> None:
    content = {"files": {"../step_00000006/state.json": 10}, "tensors": {}}
    (saved / "manifest.xxh3").unlink()
    (saved / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="names files outside of its folder"):
        verify(saved)
