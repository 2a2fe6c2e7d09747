"""Whole runs that change their ranks as they go, and torchrun's restarts in place."""

import json
import os
import signal
from pathlib import Path

import pytest

from parallel import zero  # noqa: F401  # imported once, before ranks are forked
from tests.e2e.runs import STEPS, children, curve, torchrun, train, wait_for_step, write_config

pytestmark = pytest.mark.e2e


def go_on(arguments: list[str], run: Path, step: int, ranks: int) -> None:
    """Let a run that has gone to its end go on from one of its checkpoints, with so many ranks."""
    (run / "checkpoints" / "latest").write_text(f"step_{step:08d}\n")
    train(arguments, ranks)


@pytest.mark.parametrize(
    ("engines", "tolerance"),
    [
        pytest.param(
            ["parallel.fsdp.reshard_after_forward=true"] * 3, 1e-6, marks=pytest.mark.slow
        ),
        pytest.param(
            ["parallel.zero.stage=3", "parallel.fsdp.reshard_after_forward=true"] * 2,
            1e-5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fsdp", "zero3-fsdp-zero3"],
)
def test_a_run_over_one_two_four_ranks_and_back_has_the_curve_of_one_rank(
    tmp_path: Path, engines: list[str], tolerance: float
) -> None:
    changes = {
        "checkpoint": {"every": 3, "keep_last": 9},
        "optim": {"lr": 1e-2, "eps": 1e-3},  # 1e-8 makes whole steps of float32's rounding
        "spikes": {"policy": "skip", "loss_deviations": 6.0, "window": 8},
    }
    path = str(write_config(tmp_path, **changes))
    train([path], ranks=1)
    unbroken = curve(tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}" / "state.json"
    remembered = json.loads(state.read_text())["spikes"]
    for ranks, step, engine in zip((2, 4, 1), (3, 6, 9), engines, strict=False):
        go_on([path, engine], tmp_path / "run", step, ranks)
    found = curve(tmp_path / "run")
    assert [line["kind"] for line in found] == [line["kind"] for line in unbroken]
    for line, expected in zip(found, unbroken, strict=True):
        assert line["step"] == expected["step"]
        for key in {"loss", "loss_per_exit"} & expected.keys():
            assert line[key] == pytest.approx(expected[key], rel=tolerance), expected
    again = json.loads(state.read_text())["spikes"]
    assert len(remembered["losses"]) == 8
    for key, value in remembered.items():
        assert again[key] == pytest.approx(value, rel=100 * tolerance), key


def workers(launcher: int) -> list[int]:
    """Return the processes that torchrun has started."""
    return [pid for pid in children(launcher) if b"trainer" in _command(pid)]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_torchrun_restarts_a_run_in_place_after_a_worker_was_killed(
    tmp_path: Path, victim: int
) -> None:
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "killed").mkdir()
    train([str(write_config(tmp_path / "unbroken"))])
    path = str(write_config(tmp_path / "killed"))
    process = torchrun([path], restarts=2)
    wait_for_step(tmp_path / "killed" / "run", 5)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert curve(tmp_path / "killed" / "run") == curve(tmp_path / "unbroken" / "run")
    assert not list((tmp_path / "killed" / "run" / "failures").glob("rank-?.txt"))
