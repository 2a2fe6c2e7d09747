import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.command import ROOT
from inference.__main__ import main
from tests.e2e.runs import train, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified_run")
    train([str(write_config(folder))])
    (folder / "prompts.txt").write_text("def f3_4(x):\nreturn x * 3\n")
    return folder


def _arguments(folder: Path, *overrides: str) -> list[str]:
    return ["verify", str(folder / "run"), f"prompts={folder / 'prompts.txt'}", *overrides]


def test_a_trained_run_is_certified(folder: Path) -> None:
    arguments = _arguments(folder, "max_new_tokens=24", "exit_layer=2")
    done = subprocess.run(
        [sys.executable, "-m", "inference", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "prompts: 2, self_speculative, exit 2, 6 drafts, float32: 2 equal, 0 fault\n"
    )


def test_sampling_from_a_trained_run_is_certified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(_arguments(folder, "temperature=1", "seeds=50", "max_new_tokens=3", "output=json"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["verdict"]) for row in rows] == [(1, "same"), (2, "same")]


def test_an_exit_that_the_run_does_not_have_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3 .* got 9"):
        main(_arguments(folder, "max_new_tokens=24", "exit_layer=9"))
    assert capsys.readouterr().out == ""


def test_a_decoder_that_accepts_every_draft_does_not_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def accept_all(logits, drafts, *_):  # type: ignore[no-untyped-def]
        last = logits.argmax(-1)[-1:]
        drafted = [int(each) for each in drafts]
        return [*drafted, int(last)], drafted, last

    monkeypatch.setattr("inference.speculate.accept", accept_all)
    with pytest.raises(RuntimeError, match="self-speculation is not lossless here"):
        main(_arguments(folder, "exit_layer=1", "max_new_tokens=24"))
    assert "fault" in capsys.readouterr().out


def test_a_trained_run_has_a_perplexity_at_every_exit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = f"texts={folder / 'text' / '3.py'}"
    main(["perplexity", str(folder / "run"), texts, "output=json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["exit"] for row in rows] == [1, 2, 3, 4]
    assert all(1 < row["perplexity"] < 320 for row in rows)
    assert rows[-1]["agreement"] == 1
