import subprocess
from pathlib import Path

import pytest

from configs.command import ROOT
from slurm.prepare import KINDS, LINKS, keep, main, shell_text

DEBUG = str(ROOT / "configs" / "pretrain" / "debug.yaml")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_bash(text: str, show: str) -> str:
    """Return what a shell that has read the text shows."""
    done = subprocess.run(["bash", "-c", f"{text}\n{show}"], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout


def test_a_job_keeps_code_and_config_and_what_to_run(tmp_path: Path) -> None:
    main(["pretrain", "17", "2", DEBUG, "run_folder=run", "data.source.stdlib.max_megabytes=0.1"])
    code = tmp_path / "run" / "code" / "17"
    assert (LINKS / "17").resolve() == code
    for name in ("trainer/loop.py", "slurm/launch.sh", "inference/fast/native/products.h"):
        assert (code / name).read_bytes() == (ROOT / name).read_bytes()
    assert (code / "config.yaml").read_text() == Path(DEBUG).read_text()
    assert {"commit.txt", "diff.patch"} < {p.name for p in code.iterdir()}
    assert not list(code.rglob("__pycache__"))
    shown = in_bash((code / "jobs" / "0.sh").read_text(), 'echo "$RUN $STEPS ${COMMAND[3]}"')
    assert shown == f"{tmp_path}/run 30 data.source.stdlib.max_megabytes=0.1\n"
    size = sum(p.stat().st_size for p in code.rglob("*") if p.is_file())
    assert size < 3e6


def test_a_copy_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    job = KINDS["pretrain"]([DEBUG, "run_folder=run"], 0, "17")
    kept = keep(job, "17")
    (kept / "trainer" / "loop.py").write_text("as it was")
    assert keep(job, "17") == kept
    assert (kept / "trainer" / "loop.py").read_text() == "as it was"
    assert [p.name for p in kept.parent.iterdir()] == ["17"]


def test_words_reach_the_shell_as_they_are() -> None:
    hostile = ["a b", "$(touch x)", "'\"", "*", "\n"]
    shown = in_bash(shell_text({"COMMAND": hostile}), 'printf "%s|" "${COMMAND[@]}"')
    assert shown.split("|")[:-1] == hostile


def test_without_a_job_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "-", "2", DEBUG])
    assert "STEPS=30" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_sweep_has_a_run_for_each_setting_in_a_folder_of_its_own(tmp_path: Path) -> None:
    Path("settings.txt").write_text("optim.lr={1e-3,1e-4}\n")
    job = KINDS["sweep"]([DEBUG, "settings.txt", "run_folder=sweep", "steps=40"], 2, "5")
    assert job.folder == tmp_path / "sweep"
    assert [run["RUN"] for run in job.runs] == [
        f"{tmp_path}/sweep/000-optim.lr=1e-3",
        f"{tmp_path}/sweep/001-optim.lr=1e-4",
    ]
    command = job.runs[1]["COMMAND"]
    assert command[1:4] == [f"{tmp_path}/sweep/code/5/config.yaml", "steps=40", "optim.lr=1e-4"]


def test_generating_writes_beside_the_model_unless_told(tmp_path: Path) -> None:
    Path("run").mkdir()
    (run,) = KINDS["generate"](["run", "prompts=p.txt"], 2, "9").runs
    assert run["OUTPUT"] == f"{tmp_path}/run/generated/9.jsonl.part"
    assert run["COMMAND"] == ["inference", "generate", "run", "prompts=p.txt", "output=json"]
    (run,) = KINDS["generate"](["org/model", "prompts=p.txt", "to=x.jsonl"], 2, "9").runs
    assert run["RUN"] == f"{tmp_path}/runs/generated"
    assert run["OUTPUT"] == f"{tmp_path}/x.jsonl.part"


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("pretrain", [], "usage: sbatch slurm/NAME.sh CONFIG"),
        ("pretrain", ["steps=3"], "usage: sbatch slurm/NAME.sh CONFIG"),
        ("pretrain", [DEBUG, "optim.lr=-1"], "optim.lr must be"),
        ("pretrain", [DEBUG, "batch.global_size=12"], "2 ranks cannot share equally"),
        ("finetune", [DEBUG], "no init_from to start from: add model=null"),
        ("sweep", [DEBUG, "steps=3"], "usage: sbatch slurm/NAME.sh CONFIG SETTINGS"),
        ("generate", ["prompts=p.txt"], "no MODEL"),
        ("generate", ["run", "prompt=x"], "a job needs prompts=FILE"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    tmp_path: Path, kind: str, arguments: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        main([kind, "17", "2", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_of_a_sweep_is_named(tmp_path: Path) -> None:
    Path("settings.txt").write_text("seed=1\noptim.lr={1e-3,-1}\n")
    with pytest.raises(ValueError, match=r"setting 2: .*optim\.lr must be"):
        main(["sweep", "17", "2", DEBUG, "settings.txt"])
