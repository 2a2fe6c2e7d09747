"""Runs on a mixture with a streamed source: killed, resumed, on other numbers of ranks."""

import json
import os
import signal
from pathlib import Path

import pytest

from parallel.checkpoint import latest
from tests.e2e.runs import STEPS, children, curve, train, wait_for_step, write_config
from tests.streams import write_documents, write_questions

pytestmark = pytest.mark.e2e


def mixed_run(folder: Path, **changes: object) -> list[str]:
    """Write a config of the tiny run whose data is a mixture; return the arguments of a run."""
    web = write_documents(folder / "web", files=3, rows=60)
    maths = write_questions(folder / "maths.jsonl", rows=60)
    mixture = {
        "web": {"weight": 2, "files": {"path": str(web), "streaming": True}},
        "maths": {"weight": 1, "files": {"path": str(maths), "format": "gsm8k"}},
    }
    data = {
        "mixture": mixture,
        "tokenizer": {"sentencepiece": {"vocab_size": 300}},
        "seq_len": 64,
        "valid_fraction": 0.2,
        "cross_document_attention": False,
        "cache_folder": str(folder / "data"),
        "num_processes": 1,
        "streaming": {"shuffle_documents": 8, "valid_documents": 30},
    }
    return [str(write_config(folder, data=data, **changes))]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    train(mixed_run(folder))
    return folder / "run"


def run_and_kill(arguments: list[str], run: Path, *, ranks: int) -> None:
    """Start a run on forked ranks, and SIGKILL it and them in its middle."""
    pid = os.fork()
    if pid == 0:
        try:
            train(arguments, ranks=ranks)
        finally:
            os._exit(1)
    wait_for_step(run, 5)
    for each in (pid, *children(pid)):
        os.kill(each, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert curve(run)[-1]["step"] < STEPS


def test_a_run_on_a_mixture_that_was_killed_and_resumed_gives_the_same_curve(
    tmp_path: Path, unbroken: Path
) -> None:
    arguments = mixed_run(tmp_path)
    run_and_kill(arguments, tmp_path / "run", ranks=2)
    train([*arguments, "data.streaming.workers=0"])
    assert curve(tmp_path / "run") == curve(unbroken)


@pytest.mark.parametrize(("first", "then"), [(4, 1), (1, 4)])
def test_a_killed_run_on_a_stream_goes_on_on_another_number_of_ranks(
    tmp_path: Path, unbroken: Path, first: int, then: int
) -> None:
    arguments = mixed_run(tmp_path)
    run_and_kill(arguments, tmp_path / "run", ranks=first)
    train(arguments, ranks=then)
    for line, expected in zip(curve(tmp_path / "run"), curve(unbroken), strict=True):
        assert line["loss_per_exit"] == pytest.approx(expected["loss_per_exit"], rel=1e-5)


def test_the_checkpoint_has_the_streams_of_all_ranks(unbroken: Path) -> None:
    newest = latest(unbroken / "checkpoints")
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    assert sorted(state["data_state"]["lanes"]) == ["0", "1", "2", "3"]
    assert state["data_state"]["step"] == state["step"]


def test_weights_cannot_change_in_the_middle_of_a_run(tmp_path: Path, unbroken: Path) -> None:
    arguments = [str(unbroken.parent / "config.yaml"), "data.mixture.web.weight=3"]
    with pytest.raises(AssertionError, match=r"data differs from .*, the run to go on with"):
        train(arguments, ranks=1)
