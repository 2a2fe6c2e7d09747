import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from parallel import publish
from parallel.publish import (
    check_room,
    checkpoints_in,
    delete,
    forget,
    latest,
    put_aside,
    step_of,
    tidy,
)
from parallel.verified import verify
from tests.saved import save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def crash(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["settle", "point_to", "delete"])
def test_a_crash_while_a_step_is_saved_again_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    first = save(tmp_path, 3)
    with monkeypatch.context() as patched:
        patched.setattr(publish, at, crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 3)
    newest = latest(tmp_path)
    assert newest is not None
    verify(newest)
    tidy(tmp_path)
    assert latest(tmp_path) == first
    verify(first)
    assert names(tmp_path) == ["latest", first.name]


def test_a_crash_between_the_two_names_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = save(tmp_path, 3)
    rename = Path.rename

    def rename_old_only(path: Path, target: Path) -> Path:
        return crash() if path.suffix == ".tmp" else rename(path, target)  # type: ignore[return-value]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_old_only)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 3)
    newest = latest(tmp_path)
    assert newest == tmp_path / f"{first.name}.replaced"
    verify(newest)
    with caplog.at_level(logging.WARNING):
        tidy(tmp_path)
    assert "is back: a crash had come between" in caplog.text
    assert latest(tmp_path) == first
    verify(first)
    assert names(tmp_path) == ["latest", first.name]


def test_a_crash_in_deleting_leaves_no_half_checkpoint_under_a_good_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6):
        newest = save(tmp_path, step)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, **_: path.exists() and crash())
        with pytest.raises(KeyboardInterrupt):
            forget(tmp_path, keep_last=1)
    assert names(tmp_path) == ["latest", "step_00000003.deleted", newest.name]
    with caplog.at_level(logging.WARNING):
        tidy(tmp_path)
    assert "what a crash had left: step_00000003.deleted" in caplog.text
    assert names(tmp_path) == ["latest", newest.name]


def test_what_latest_names_is_never_forgotten(tmp_path: Path) -> None:
    first, *_ = (save(tmp_path, step) for step in (3, 6, 9))
    (tmp_path / "latest").write_text(f"{first.name}\n")
    forget(tmp_path, keep_last=1)
    assert names(tmp_path) == ["latest", first.name, "step_00000009"]


@pytest.mark.parametrize("content", [None, "", "../elsewhere", "step_00000099", b"\xff\x00"])
def test_a_pointer_that_is_lost_or_damaged_is_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | bytes | None
) -> None:
    for step in (3, 6):
        newest = save(tmp_path, step)
    pointer = tmp_path / "latest"
    pointer.unlink()
    if content is not None:
        pointer.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert latest(tmp_path) == newest
    with caplog.at_level(logging.WARNING):
        tidy(tmp_path)
    assert "was lost or named nothing: it names step_00000006 now" in caplog.text
    assert pointer.read_text() == "step_00000006\n"


def test_what_latest_names_is_missed_where_there_is_nothing_else(tmp_path: Path) -> None:
    gone = save(tmp_path, 3)
    delete(gone)
    assert latest(tmp_path) == gone  # which no one can read, so no run begins anew
    (tmp_path / "latest").unlink()
    assert latest(tmp_path) is None


def test_damaged_checkpoints_are_kept_each_under_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        good, damaged = (save(tmp_path, step) for step in (3, 6))
        put_aside([damaged], good)
    assert names(tmp_path) == [
        "latest",
        "step_00000003",
        "step_00000006.damaged",
        "step_00000006.damaged.2",
    ]
    assert latest(tmp_path) == good
    forget(tmp_path, keep_last=1)
    tidy(tmp_path)
    assert len(names(tmp_path)) == 4


def test_a_save_that_will_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match=r"needs .* GB, but .* has .* GB free: make room there, or"):
        check_room(tmp_path, free + 10**9)
    check_room(tmp_path, free // 2)


def test_old_checkpoints_that_somebody_needs_stay_for_now(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    asked: list[list[int]] = []

    def spared(steps: Sequence[int]) -> list[int]:
        asked.append(list(steps))
        return [2]

    forget(tmp_path, 2, spared)
    assert asked == [[1, 2, 3]]
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [2, 4, 5]
    forget(tmp_path, 2)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [4, 5]
