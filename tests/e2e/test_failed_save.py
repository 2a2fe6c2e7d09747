import os
import resource
from pathlib import Path

import pytest

from tests.e2e.runs import curve, write_config
from tests.ranks import run_ranks
from trainer.__main__ import main

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
