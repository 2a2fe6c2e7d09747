"""Whether the judge sees what he is there for."""

import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import command
from tests.fuzz.command import Main, judge, run
from tests.fuzz.folders import contents, lost


def refuse(arguments: list[str]) -> None:
    raise ValueError(f"a is {arguments[0]}, not 3: change it")


def hang(arguments: list[str]) -> None:
    time.sleep(60)


def crash(arguments: list[str]) -> None:
    {}["a"]


def fill_memory(arguments: list[str]) -> None:
    bytearray(2**40)


def leave(arguments: list[str]) -> None:
    sys.exit(7)


def test_success_and_one_clear_line_are_good_ends() -> None:
    assert judge(run(lambda arguments: None, []))
    outcome = run(refuse, ["4"])
    assert not judge(outcome)
    assert outcome.err == "error: a is 4, not 3: change it\n"


@pytest.mark.parametrize(
    ("main", "fault"),
    [(hang, "it hung"), (crash, "KeyError"), (fill_memory, "MemoryError"), (leave, "exit code 7")],
)
def test_every_other_end_is_a_bad_one(
    main: Main, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SECONDS", 2)
    with pytest.raises(AssertionError, match=fault):
        judge(run(main, []))


def test_a_file_that_is_changed_or_deleted_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    before = contents(tmp_path)
    (tmp_path / "a").write_text("c")
    (tmp_path / "b").unlink()
    (tmp_path / "c").touch()
    assert lost(tmp_path, before) == {"a", "b"}
