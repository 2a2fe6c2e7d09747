import errno
import sys
from pathlib import Path

import pytest

from configs.command import LONGEST, run_command


def said(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    def main(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 1
    return capsys.readouterr().err


def test_an_error_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(ValueError("a is\n3"), monkeypatch, capsys) == "error: a is 3\n"


def test_the_beginning_and_the_end_of_a_long_one_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(ValueError("key: " + "x" * 10_000 + "; remedy"), monkeypatch, capsys)
    assert line.startswith("error: key: xxx")
    assert line.endswith("xxx; remedy\n")
    assert len(line) < LONGEST + 20


def test_a_file_that_cannot_be_opened_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(errno.EACCES, "Permission denied", str(tmp_path))
    assert said(error, monkeypatch, capsys) == f"error: {tmp_path}: Permission denied\n"


@pytest.mark.parametrize("error", [KeyError("a"), OSError(errno.EIO, "Input/output error")])
def test_what_nobody_foresaw_comes_with_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(error, monkeypatch, capsys)
    assert text.startswith("Traceback")
    assert text.splitlines()[-1].startswith("error: ")
