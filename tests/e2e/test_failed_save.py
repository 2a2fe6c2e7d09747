import os
import resource
from pathlib import Path

import pytest

from configs.load import load
from data_pipelines.prepare import prepare
from tests.e2e.runs import curve, train, write_config
from tests.ranks import run_ranks
from trainer.__main__ import main
from trainer.config import PretrainConfig

pytestmark = pytest.mark.e2e


LARGEST_FILE = 20_000
"""Bytes: more than the file through which the ranks find each other, less than a shard."""


def _train_while_rank_1_cannot_write(config: str) -> str:
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    try:
        main([config])
    except RuntimeError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return str(error)
    raise AssertionError("the run went on as if nothing had happened")


def test_a_save_that_fails_in_the_background_ends_the_run_on_all_ranks(tmp_path: Path) -> None:
    changes = {"steps": 60, "checkpoint": {"every": 20, "asynchronous": True}}
    config = write_config(tmp_path, validate={"every": 60}, **changes)
    messages = run_ranks(_train_while_rank_1_cannot_write, str(config), world=2)
    assert messages[0] == messages[1]
    assert "saving the checkpoint of step 20 failed on rank 1: " in messages[0]
    last = curve(tmp_path / "run")[-1]["step"]
    assert isinstance(last, int)
    assert 20 < last < 40  # neither at the next save nor at the end


def _train_on_a_full_disk(config: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    try:
        main([config])
    except RuntimeError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return str(error)
    raise AssertionError("the run went on as if nothing had happened")


def test_metrics_that_cannot_be_written_end_the_run_in_one_line_and_tear_no_other(
    tmp_path: Path,
) -> None:
    steps = {"steps": 60, "checkpoint": {"every": 60}, "validate": {"every": 60}}
    config = write_config(tmp_path, **steps)
    prepare(load(PretrainConfig, config).data)
    (message,) = run_ranks(_train_on_a_full_disk, str(config), world=1)
    run = tmp_path / "run"
    assert message.startswith(f"run_folder {run} cannot be written to: ")
    assert "make room there and start again" in message
    assert [line["step"] for line in curve(run)] == list(range(1, len(curve(run)) + 1))
    train([str(config)], ranks=1)
    assert len([line for line in curve(run) if line["kind"] == "train"]) == 60
