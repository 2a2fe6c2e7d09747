import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.e2e.runs import curve
from tests.slurm.cluster import Cluster, cluster, wait_until
from tests.slurm.jobs import EVERY, LONG, newest_step, outage, submit

pytestmark = pytest.mark.slurm

NONE_LOST = range(1)
TO_THE_CHECKPOINT = range(EVERY + 1)


def test_preemption_loses_no_step(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    job.wait_for_step(EVERY + 2)
    urgent = ("sbatch", "--parsable", "--partition=high", "--nodes=2", "--wrap", "srun sleep 5")
    with outage(job, "preemption", NONE_LOST):
        slurm.run(*urgent, cwd=tmp_path)
    assert job.wait() == "COMPLETED", job.said
    assert job.restarts == 1
    assert curve(run) == curve(unbroken)


def test_the_time_limit_loses_no_step(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    job.wait_for_step(EVERY + 2)
    # The step now takes until Slurm, which looks twice a minute, sees that the limit is near.
    job.signal_ranks(signal.SIGSTOP)
    slurm.run("scontrol", "update", f"jobid={job.number}", "timelimit=2")
    wait_until(lambda: "USR1: the ranks are told" in job.said, 90, f"USR1\n{job.said}")
    with outage(job, "time limit", NONE_LOST):
        job.signal_ranks(signal.SIGCONT)
        wait_until(lambda: job.state == "PENDING", 60, "back in the queue")
        slurm.run("scontrol", "update", f"jobid={job.number}", "timelimit=60")
    assert job.wait() == "COMPLETED", job.said
    assert job.restarts == 1
    assert curve(run) == curve(unbroken)


def test_a_killed_rank_is_started_again_in_place(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    job.wait_for_step(EVERY + 2)
    with outage(job, "a rank killed", TO_THE_CHECKPOINT):
        job.signal_ranks(signal.SIGKILL, 1)
    assert "starting again in place: rank 1 ended first, with code 137" in job.said
    assert job.wait() == "COMPLETED", job.said
    assert job.restarts == 0
    assert curve(run) == curve(unbroken)


def test_a_rank_that_is_killed_again_and_again_is_requeued_until_the_budget_is_spent(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(
        *(slurm, "pretrain", str(config), f"run_folder={run}"),
        cwd=here,
        run=run,
        settings={"RESTARTS_IN_PLACE": "0", "MOST_FAULTS": "2"},
    )
    job.wait_for_step(EVERY + 2)
    with outage(job, "a rank killed, job requeued", TO_THE_CHECKPOINT):
        job.signal_ranks(signal.SIGKILL, 0)
    job.signal_ranks(signal.SIGKILL, 0)
    assert job.wait() == "FAILED"
    assert job.restarts == 1
    assert "error: 2 times in a row at the same checkpoint, step_" in job.said
    assert "rank 0 ended first, with code 137: ended by signal 9" in job.said


@pytest.fixture
def slurm_that_waits() -> Iterator[Cluster]:
    with cluster(requeue_wait=75) as running:
        yield running


def test_the_run_survives_the_death_of_each_node(
    slurm_that_waits: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    slurm, run = slurm_that_waits, tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    for number, name in ((1, "the second node dies"), (0, "the batch host dies")):
        job.wait_for_step(EVERY * (5 - 3 * number) + 2)
        with outage(job, name, TO_THE_CHECKPOINT):
            node = slurm.nodes[number]
            slurm.fail_node(node)
            wait_until(lambda: job.state in ("PENDING", "COMPLETING"), 180, f"requeue\n{job.said}")
            slurm.start_node(node)
    assert job.wait() == "COMPLETED", job.said
    assert curve(run) == curve(unbroken)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 24) as mounted:
        yield mounted


def test_a_full_disk_ends_the_run_with_one_line_and_room_lets_it_go_on(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path, disk: Path
) -> None:
    run = disk / "run"
    arguments = (slurm, "pretrain", str(config), f"run_folder={run}")
    job = submit(*arguments, cwd=here, run=run)
    job.wait_for_step(EVERY + 2)
    filler = disk / "filler"
    left = shutil.disk_usage(disk).free
    filler.write_bytes(bytes(left - (1 << 16)))  # room for logs and metrics, not for a checkpoint
    assert job.wait() == "FAILED"
    assert job.restarts == 0
    ends = [line for line in job.said.splitlines() if " error: rank " in line]
    assert len(ends) == 1, job.said
    assert "No space left on device" in ends[0] or "space" in ends[0]
    assert newest_step(run) == EVERY
    filler.unlink()
    again = submit(*arguments, cwd=here, run=run)
    assert again.wait(LONG) == "COMPLETED", again.said
    assert curve(run) == curve(unbroken)
