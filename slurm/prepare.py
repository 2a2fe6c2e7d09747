"""`python -m slurm.prepare KIND JOB RANKS ARGUMENTS...`: check a job, and keep its code and config.

Copies code and config to `FOLDER/code/JOB`, FOLDER being that of the run, the sweep or the model,
with a shell file `jobs/N.sh` for each run of the job; `runs/.jobs/JOB` leads there. When the job is
requeued it reads these, and nothing that may have changed since. With JOB `-` nothing is written,
and the shell file is printed.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.command import ROOT, run_command
from configs.load import load
from data_pipelines.missing import missing_files
from inference.parse import parse_generate
from slurm.settings import folder_name, read_settings
from trainer.config import PretrainConfig
from trainer.run_folder import source_version

PACKAGES = ("configs", "data_pipelines", "inference", "models", "parallel", "slurm", "trainer")
"""What a job runs; documentation, tests and benchmarks stay behind."""
LINKS = Path("runs/.jobs")
"""Where a job that starts again looks for its code, in the folder that it was submitted from."""
SHOWN = "JOB"
"""Stands for the number of a job that there is not."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a submitted script is to do."""

    folder: Path
    """Code and, but for a sweep, logs go there."""
    runs: Sequence[Mapping[str, str | list[str]]]
    """Shell variables of each of its runs."""
    files: Mapping[str, Path]
    """To be kept with the code, by the name that they have there."""


def main(arguments: list[str]) -> None:
    """Prepare the job that the command line describes.

    Raises:
        ValueError: if there is something wrong with it, in one line.
    """
    kind, job, ranks, *rest = arguments
    code = SHOWN if job == "-" else job
    described = KINDS[kind](rest, int(ranks), code)
    if job == "-":
        sys.stdout.write(shell_text(described.runs[0]))
        return
    keep(described, job)


def train_job(arguments: list[str], ranks: int, job: str) -> Job:
    """Return the job that trains one run."""
    path, overrides = _config_argument(arguments)
    config = _checked(path, overrides, ranks)
    run = Path(config.run_folder).absolute()
    return Job(run, [_training(config, run, run, job, overrides)], {"config.yaml": path})


def finetune_job(arguments: list[str], ranks: int, job: str) -> Job:
    """Return the job that goes on training a model.

    Raises:
        ValueError: if the config names none.
    """
    path, overrides = _config_argument(arguments)
    if load(PretrainConfig, path, overrides).init_from is None:
        raise ValueError(
            f"{path} has no init_from to start from: add model=null init_from=FOLDER, a model in "
            "Hugging Face form; slurm/pretrain.sh trains a fresh one"
        )
    return train_job(arguments, ranks, job)


def sweep_job(arguments: list[str], ranks: int, job: str) -> Job:
    """Return the job that trains one run for each setting of a file; all are checked here."""
    path, (settings_file, *overrides) = _config_argument(arguments, more="SETTINGS")
    settings = read_settings(Path(settings_file))
    folder = Path(load(PretrainConfig, path, overrides).run_folder).absolute()
    overrides = [each for each in overrides if not each.startswith("run_folder=")]
    runs: list[dict[str, str | list[str]]] = []
    for number, setting in enumerate(settings):
        run = folder / folder_name(number, setting)
        changes = [*overrides, *setting, f"run_folder={run}"]
        try:
            config = _checked(path, changes, ranks)
        except ValueError as error:
            raise ValueError(f"setting {number}: {error}") from None
        runs.append(_training(config, folder, run, job, changes))
    runs[0]["SETTINGS"] = [shlex.join(setting) for setting in settings]
    return Job(folder, runs, {"config.yaml": path, "settings.txt": Path(settings_file)})


def generate_job(arguments: list[str], ranks: int, job: str) -> Job:
    """Return the job that continues a file of prompts.

    Raises:
        ValueError: if there is no model or no file of prompts.
    """
    if not arguments or "=" in arguments[0]:
        raise ValueError("no MODEL: sbatch slurm/generate.sh MODEL prompts=FILE [key=value ...]")
    model, *rest = arguments
    targets = [a.removeprefix("to=") for a in rest if a.startswith("to=")]
    overrides = [a for a in rest if not a.startswith("to=")]
    if not any(a.startswith("output=") for a in overrides):
        overrides.append("output=json")
    if parse_generate(overrides).prompts is None:
        raise ValueError("a job needs prompts=FILE: nobody is there to type a prompt")
    folder = Path(model if Path(model).is_dir() else "runs").absolute() / "generated"
    output = Path(targets[-1]) if targets else folder / f"{job}.jsonl"
    run: dict[str, str | list[str]] = {
        "FOLDER": str(folder),
        "RUN": str(folder),
        "OUTPUT": f"{output.absolute()}.part",
        "COMMAND": ["inference", "generate", model, *overrides],
    }
    return Job(folder, [run], {})


KINDS = {
    "pretrain": train_job,
    "finetune": finetune_job,
    "sweep": sweep_job,
    "generate": generate_job,
}


def _config_argument(arguments: list[str], more: str = "") -> tuple[Path, list[str]]:
    wanted = ["CONFIG", *more.split()]
    given = [a for a in arguments[: len(wanted)] if "=" not in a and not a.startswith("-")]
    if len(given) < len(wanted):
        raise ValueError(f"usage: sbatch slurm/NAME.sh {' '.join(wanted)} [key=value ...]")
    return Path(arguments[0]), arguments[1:]


def _checked(path: Path, overrides: list[str], ranks: int) -> PretrainConfig:
    config = load(PretrainConfig, path, overrides)
    if ranks:
        config.batch.check_ranks(ranks)
    return config


def _training(
    config: PretrainConfig, folder: Path, run: Path, job: str, overrides: list[str]
) -> dict[str, str | list[str]]:
    copied = str(folder / "code" / job / "config.yaml")
    return {
        "FOLDER": str(folder),
        "RUN": str(run),
        "STEPS": str(config.steps),
        "COMMAND": ["trainer", copied, *overrides],
        "MISSING": ", ".join(missing_files(config.data)),
    }


def shell_text(variables: Mapping[str, str | list[str]]) -> str:
    """Return assignments for a shell: texts, and lists as arrays."""
    lines = (
        f"{name}={shlex.quote(value) if isinstance(value, str) else f'({shlex.join(value)})'}\n"
        for name, value in variables.items()
    )
    return "".join(lines)


def keep(job: Job, name: str) -> Path:
    """Copy code and files to `FOLDER/code/NAME`, and return that; what is there already stays.

    Tasks of an array that start together may all try: the first to finish has its way.
    """
    final = job.folder / "code" / name
    final.parent.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".tmp", dir=final.parent))
        partial.chmod(0o755)
        _write(job, partial)
        try:
            partial.rename(final)
        except OSError:
            shutil.rmtree(partial)
            if not final.exists():
                raise
    LINKS.mkdir(parents=True, exist_ok=True)
    link = LINKS / f"{name}-{os.getpid()}.tmp"
    link.symlink_to(final)
    link.replace(LINKS / name)
    return final


def _write(job: Job, folder: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name, text in source_version().items():
        (folder / name).write_text(text)
    for name, source in job.files.items():
        shutil.copy(source, folder / name)
    (folder / "jobs").mkdir()
    for number, variables in enumerate(job.runs):
        (folder / "jobs" / f"{number}.sh").write_text(shell_text(variables))


if __name__ == "__main__":
    run_command(main)
