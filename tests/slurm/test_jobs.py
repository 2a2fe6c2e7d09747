import json
from pathlib import Path

import pytest

from tests.e2e.runs import curve
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import ENVIRONMENT, LONG, STEPS, submit

pytestmark = pytest.mark.slurm


def test_two_nodes_train_to_the_last_step_and_then_continue_prompts(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    assert job.wait() == "COMPLETED", job.said
    assert curve(run) == curve(unbroken)
    assert f"done: step {STEPS} of {STEPS}" in job.said
    logs = run / "logs" / f"{job.number}.0"
    assert (logs / "rank-0.log").read_text() in job.said
    assert (logs / "rank-1.log").read_text().startswith("== rank 1 of 2 on ")

    (here / "prompts.txt").write_text("def f(\nreturn x\ndef g(\n")
    job = submit(
        *(slurm, "generate", str(run), "prompts=prompts.txt", "max_new_tokens=4", "dtype=float32"),
        cwd=here,
        run=run,
    )
    assert job.wait() == "COMPLETED", job.said
    texts = (run / "generated" / f"{job.number}.jsonl").read_text().splitlines()
    assert len([x for x in map(json.loads, texts) if "text" in x]) == 3


def test_a_job_runs_the_code_and_config_that_it_was_submitted_with(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run, mine = tmp_path / "run", here / "mine.yaml"
    mine.write_text(config.read_text())
    command = ("bash", "slurm/submit.sh", "--nodes", "2", "--begin", "now+1hour")
    arguments = ("slurm/pretrain.sh", "mine.yaml", f"run_folder={run}")
    said = slurm.run(*command, *arguments, cwd=here, **ENVIRONMENT)
    number = said.split()[3].strip(",")
    (here / "trainer" / "loop.py").write_text("raise SystemExit('edited')")
    mine.write_text("nothing: left")
    slurm.run("scontrol", "update", f"jobid={number}", "starttime=now")
    wait_until(lambda: slurm.job(number)["JobState"] == "COMPLETED", LONG, said)
    assert curve(run) == curve(unbroken)


def test_a_sweep_trains_each_setting_in_a_folder_of_its_own(
    slurm: Cluster, here: Path, config: Path, tmp_path: Path
) -> None:
    (here / "settings.txt").write_text("optim.lr={1e-2,1e-3}\nseed=1\n")
    arguments = (str(config), "settings.txt", f"run_folder={tmp_path}/sweep", "steps=4")
    options = ("--array", "0-3", "--nodes", "1")
    job = submit(slurm, "sweep", *arguments, cwd=here, run=tmp_path / "sweep", options=options)
    tasks = [f"{job.number}_{task}" for task in range(4)]
    ends = []
    for task in tasks:
        wait_until(lambda t=task: slurm.job(t)["JobState"] in ("COMPLETED", "FAILED"), LONG, task)
        ends.append(slurm.job(task)["JobState"])
    said = [(here / f"sweep-{task}.out").read_text() for task in tasks]
    assert ends == ["COMPLETED"] * 3 + ["FAILED"], said
    assert "the sweep has no setting 3" in said[3]
    folders = sorted(p.parent.name for p in (tmp_path / "sweep").glob("*/metrics.jsonl"))
    assert folders == ["000-optim.lr=1e-2", "001-optim.lr=1e-3", "002-seed=1"]
    assert len(list((tmp_path / "sweep" / "code").iterdir())) == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=-1", "optim.lr must be"),
        ("data.source.files.path=nowhere", "path: there is no file or folder nowhere"),
    ],
)
def test_a_mistake_fails_with_one_line_and_is_not_requeued(
    slurm: Cluster, here: Path, config: Path, tmp_path: Path, override: str, line: str
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", override, cwd=here, run=run)
    assert job.wait() == "FAILED"
    assert job.restarts == 0
    assert any("error: " in x and line in x for x in job.said.splitlines()[-2:])
    assert "Traceback" not in job.said


def test_checkpoints_are_evaluated_beside_a_job_that_is_requeued(
    slurm: Cluster, here: Path, config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (here / "prompts.txt").write_text("def f(\nreturn x\n")
    section = "{every: 10, exits: [2, 4], prompts: prompts.txt, max_new_tokens: 8}"
    arguments = (str(config), f"run_folder={run}", f"evaluate={section}")
    job = submit(slurm, "pretrain", *arguments, cwd=here, run=run)
    job.wait_for_step(22)
    urgent = ("sbatch", "--parsable", "--partition=high", "--nodes=2", "--wrap", "srun sleep 5")
    slurm.run(*urgent, cwd=tmp_path)
    assert job.wait() == "COMPLETED", job.said
    assert job.restarts == 1
    assert curve(run) == curve(unbroken)
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert {STEPS} < set(steps) <= set(range(10, STEPS + 1, 10))
    assert all(line["exits"]["2"]["acceptance"] is not None for line in lines)
    wait_until(lambda: not slurm.processes(), 60, "nothing is left behind")


def test_a_job_that_is_cancelled_stays_so(
    slurm: Cluster, here: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(slurm, "pretrain", str(config), f"run_folder={run}", cwd=here, run=run)
    job.wait_for_step(12)
    slurm.run("scancel", job.number)
    assert job.wait() == "CANCELLED"
    wait_until(lambda: not slurm.processes(), 60, "all ranks ended")
    assert job.state == "CANCELLED"
    assert job.restarts == 0
