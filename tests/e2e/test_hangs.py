"""Ranks that stop, die or get stuck: what the others do, write and say."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.loader import Batch, Loader
from tests.e2e.runs import children, curve, torchrun, wait_for_step, write_config
from tests.ranks import RankError, run_ranks
from trainer import watchdog
from trainer.__main__ import main

pytestmark = pytest.mark.e2e

QUICK = {"timeout_seconds": 3.0, "long_timeout_seconds": 90.0}


def config(folder: Path, **parallel: float) -> str:
    sections = {"checkpoint": {"every": 500}, "validate": {"every": 500}, "steps": 500}
    return str(write_config(folder, parallel=QUICK | parallel, **sections))


def worker(launcher: "subprocess.Popen[str]", rank: int) -> int:
    """Return the process of a rank that torchrun has started."""
    for pid in children(launcher.pid):
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no rank {rank}")


def report(folder: Path, rank: int) -> str:
    return (folder / "run" / "failures" / f"rank-{rank}.txt").read_text()


def seconds_until(condition: Callable[[], bool], at_most: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < at_most
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_rank_that_is_stopped_is_missed_within_the_timeout(tmp_path: Path) -> None:
    launcher = torchrun([config(tmp_path)])
    wait_for_step(tmp_path / "run", 5)
    survivor, stopped = worker(launcher, 0), worker(launcher, 1)
    os.kill(stopped, signal.SIGSTOP)
    gone = Path(f"/proc/{survivor}")
    seconds = seconds_until(lambda: not gone.exists() or "Z (" in state(gone), at_most=30)
    assert seconds < QUICK["timeout_seconds"] + watchdog.WAIT_SECONDS + 5
    os.kill(stopped, signal.SIGCONT)
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode != 0
    assert "[rank 0] error: no progress for 3 s in step " in said
    assert "rank 1 left no report: stopped, killed or stuck beyond Python" in said
    assert "exitcode  : 75" in said
    written = report(tmp_path, 0)
    last = curve(tmp_path / "run")[-1]["step"]
    assert f"doing: step {last}\n" in written
    assert "plan of microbatch 0 of this rank: layers 0" in written
    assert "in agree\n" in written.split("stacks of all threads:")[1]


def state(process: Path) -> str:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "Z ("
    return f"{fields[0]} ("


def test_a_rank_that_is_killed_is_named_at_once(tmp_path: Path) -> None:
    launcher = torchrun([config(tmp_path, timeout_seconds=60.0)])
    wait_for_step(tmp_path / "run", 5)
    os.kill(worker(launcher, 1), signal.SIGKILL)
    said = launcher.communicate(timeout=45)[0]
    assert "[rank 0] error: a rank did not answer in step " in said
    assert "rank 1 left no report: stopped, killed or stuck beyond Python" in said
    assert "Traceback" not in said.split("error:")[0]
    assert "gloo/transport" in report(tmp_path, 0)


def _stuck(arguments: list[str], wait: Callable[[], object], rank: int) -> None:
    """In a rank: the data of step 4 never comes on one rank."""
    watchdog.WAIT_SECONDS = 1.0
    if os.environ["RANK"] == str(rank):
        honest = Loader.microbatch

        def microbatch(self: Loader, step: int, index: int) -> Batch:
            if step == 4:
                wait()
            return honest(self, step, index)

        Loader.microbatch = microbatch  # type: ignore[method-assign]
    main(arguments)


def sleep_long() -> None:
    time.sleep(100)


def sleep_without_letting_go_of_python() -> None:
    ctypes.PyDLL(None).sleep(100)


def test_a_rank_that_waits_for_its_data_says_so_and_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"wait status 19200|killed"):
        run_ranks(_stuck, [config(tmp_path)], sleep_long, 1)
    assert "reason: no progress for 3 s in waiting for the data of step 4" in report(tmp_path, 1)
    assert "in sleep_long" in report(tmp_path, 1)
    assert "reason: no progress for 3 s in step 4" in report(tmp_path, 0)


def test_even_code_that_lets_no_other_python_run_is_ended_with_its_stacks(tmp_path: Path) -> None:
    began = time.monotonic()
    # It is stuck in fetching ahead, during the first step, perhaps.
    arguments = [config(tmp_path, timeout_seconds=1.0, long_timeout_seconds=15.0)]
    with pytest.raises(RankError, match="wait status 256"):
        run_ranks(_stuck, arguments, sleep_without_letting_go_of_python, 0, world=1)
    assert time.monotonic() - began < 60
    assert "Timeout (" in report(tmp_path, 0)
    assert "in sleep_without_letting_go_of_python" in report(tmp_path, 0)


def test_an_abort_in_c_leaves_its_stacks(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="wait status"):
        run_ranks(_stuck, [config(tmp_path)], os.abort, 0, world=1)
    assert "Fatal Python error: Aborted" in report(tmp_path, 0)
    assert "in microbatch" in report(tmp_path, 0)


def fail() -> None:
    raise ValueError("the disk of this rank is broken")


def test_a_rank_that_fails_alone_is_quoted_by_the_others(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="ValueError: the disk of this rank is broken"):
        run_ranks(_stuck, [config(tmp_path)], fail, 1)
    assert "reason: the disk of this rank is broken" in report(tmp_path, 1)
    others = report(tmp_path, 0).splitlines()[-1]
    assert others == "others: rank 1 failed first: the disk of this rank is broken"


def test_a_run_that_ends_well_leaves_no_trace_of_being_watched(tmp_path: Path) -> None:
    run_ranks(main, [config(tmp_path), "steps=3"])
    assert not (tmp_path / "run" / "failures").exists()
