"""Checkpoints evaluated beside a training of two ranks, on a schedule."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import load
from inference.__main__ import main
from tests.e2e.runs import STEPS, curve, train, write_config
from trainer.config import PretrainConfig
from trainer.evaluation import evaluating, follow_arguments
from trainer.signals import StopRequest

pytestmark = pytest.mark.e2e


def config_with(folder: Path, prompts: str, **changes: Any) -> Path:
    (folder / "prompts.txt").write_text(prompts)
    section = {"every": 6, "exits": [2, 4], "prompts": str(folder / "prompts.txt")}
    limits = {"max_new_tokens": 12, "num_speculations": 3}
    checkpoint = {"every": 3, "keep_last": 1}  # fewer than are evaluated
    return write_config(folder, evaluate=section | limits | changes, checkpoint=checkpoint)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_scheduled_checkpoints_are_evaluated_beside_the_training_and_only_once(
    tmp_path: Path,
) -> None:
    arguments, run = [str(config_with(tmp_path, "def f\n    return x\n"))], tmp_path / "run"
    train(arguments)
    assert [line["step"] for line in lines(run)] == [6, STEPS]
    for line in lines(run):
        assert list(line["exits"]) == ["2", "4"]
        assert 0 <= line["exits"]["2"]["acceptance"] <= 1
        assert line["exits"]["4"]["texts"]
    board = EventAccumulator(str(run / "tensorboard" / "evaluation" / "exit_02"))
    board.Reload()
    assert [event.step for event in board.Scalars("measured/acceptance")] == [6, STEPS]
    metrics = [line for line in curve(run) if line["kind"] == "train"]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))

    first, *_ = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(first)  # as if killed before the last
    config = load(PretrainConfig, arguments[0])
    assert config.evaluate is not None
    main(["follow", str(run), *follow_arguments(config.evaluate, until=STEPS)])
    assert [line["step"] for line in lines(run)] == [6, STEPS]
    assert (run / "evaluations.jsonl").read_text().startswith(first)
    assert "Traceback" not in (run / "evaluations.log").read_text()


def test_an_evaluation_that_fails_is_one_line_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(PretrainConfig, config_with(tmp_path, "\n"))
    Path(config.run_folder).mkdir()
    with caplog.at_level(logging.INFO), evaluating(config, is_first=True) as finish:
        finish(StopRequest())
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("the evaluation of checkpoints ended with code 1: error: prompts=")
    assert "the file is empty; write one prompt a line; training goes on without it" in said


def test_who_was_asked_to_stop_before_waits_for_no_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(PretrainConfig, config_with(tmp_path, "def f\n"))
    Path(config.run_folder).mkdir()
    asked, began = StopRequest(), time.monotonic()
    with evaluating(config, is_first=True) as finish:  # it waits for a first checkpoint
        os.kill(os.getpid(), signal.SIGUSR1)
        finish(asked)
    assert time.monotonic() - began < 10
    assert [r.levelno for r in caplog.records] == [logging.WARNING]  # the signal was received


def test_an_evaluation_ends_with_a_training_that_stops_early(tmp_path: Path) -> None:
    config = load(PretrainConfig, config_with(tmp_path, "def f\n"))
    Path(config.run_folder).mkdir()
    began = time.monotonic()
    with evaluating(config, is_first=True):
        pass
    assert time.monotonic() - began < 10
    with evaluating(config, is_first=False) as finish:  # other ranks have none
        finish(StopRequest())
