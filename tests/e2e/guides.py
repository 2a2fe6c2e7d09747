"""The commands of the guides in docs/, read out of the Markdown, and run as written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

from configs.command import ROOT
from configs.load import load
from data_pipelines.__main__ import main as data_main
from inference.__main__ import main as inference_main
from tests.ranks import run_ranks
from trainer.__main__ import main as trainer_main
from trainer.config import PretrainConfig

SHARED = ("configs", "docs", "slurm", "README.md")
"""What the commands name, beside what they make; no more is in the folder that they run in."""
MAINS: dict[str, Callable[[list[str]], None]] = {
    "trainer": trainer_main,
    "inference": inference_main,
    "data_pipelines": data_main,
}
SETTING = re.compile(r"[A-Z_]+=\S*")
ELSEWHERE = ("sbatch", "tensorboard", "pip")
"""Begin commands that cannot run here: they want a cluster, a browser, the network."""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of a guide."""

    text: str
    runs: bool
    """Whether its block says `sh`: it runs as written. Others hold names for yours to take."""

    @property
    def environment(self) -> dict[str, str]:
        """What the line sets for its command alone."""
        words = shlex.split(self.text, comments=True)
        pairs = (word.partition("=") for word in takewhile(SETTING.fullmatch, words))
        return {name: value for name, _, value in pairs}

    @property
    def words(self) -> list[str]:
        """The words of the command."""
        return shlex.split(self.text, comments=True)[len(self.environment) :]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it can only be looked at."""
        return not self.runs or self.words[0] in ELSEWHERE


def commands(page: str, before: str | None = None) -> list[Command]:
    """Return the commands of a page of docs/ in order, those of blocks without a language too.

    Args:
        page: its file name.
        before: the heading to stop at.
    """
    text = (ROOT / "docs" / page).read_text()
    if before is not None:
        text = text[: text.index(f"\n{before}\n")]
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M):
        lines = block.replace("\\\n", " ").splitlines()
        wanted = [line for line in lines if line.strip() and not line.startswith("#")]
        if language == "sh":
            found += [Command(line, True) for line in wanted]
        elif not language:
            starts = ("torchrun ", "python -m ", "sbatch ")
            found += [Command(line, False) for line in wanted if line.startswith(starts)]
    return found


def make_workspace(folder: Path) -> Path:
    """Return a folder in which commands find what they name in the repository, and nothing else."""
    for name in SHARED:
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_here(command: Command) -> None:
    """Run a command in this process and forks of it, which spares starting Python and torch."""
    words = command.words
    module, ranks = words[words.index("-m") + 1] if "-m" in words else "", 1
    if module not in MAINS:
        subprocess.run(["bash", "-ec", command.text], check=True, timeout=60)
        return
    arguments = words[words.index(module) + 1 :]
    if words[0] == "torchrun":
        ranks = int(words[words.index("--nproc-per-node") + 1])
    trains = module == "trainer" and "--check" not in arguments
    with patch.dict(os.environ, command.environment):
        if trains or ranks > 1:
            run_ranks(MAINS[module], arguments, world=ranks)
        else:
            MAINS[module](arguments)


def run_in_a_shell(command: Command, folder: Path) -> str:
    """Run a command as a user would, and return what it prints.

    Raises:
        AssertionError: if it fails.
    """
    path = f"PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} OMP_NUM_THREADS=1; "
    done = subprocess.run(
        ["bash", "-ec", f"export {path}{command.text}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command.text}\n{done.stdout}"
    return done.stdout


def check_names(command: Command) -> None:
    """Check that a command which cannot run here names files that exist and keys that are valid.

    Raises:
        ValueError: if a config's key or value is wrong.
        AssertionError: if a script or config is not there.
    """
    words = command.words
    for word in words:
        if word.startswith(("slurm/", "configs/")):
            assert (ROOT / word).is_file(), f"{command.text}: there is no {word}"
    configs = [word for word in words if word.startswith("configs/")]
    if not configs:
        assert words[0] in ("tensorboard", "pip"), f"{command.text}: nothing of it is checked"
        return
    overrides = words[words.index(configs[0]) + 1 :]
    _ = load(PretrainConfig, ROOT / configs[0], overrides)


Run = Callable[[Command], object]


def follow(lines: list[Command], run: Run, done: set[str]) -> None:
    """Run commands in order, but those that were run already.

    Pages begin with what they share, so that each stands alone.
    """
    for command in lines:
        if command.is_elsewhere:
            check_names(command)
        elif command.text not in done:
            run(command)
            done.add(command.text)


def in_a_shell(folder: Path) -> Run:
    """Return how to run commands as a user would, in a folder."""
    return partial(run_in_a_shell, folder=folder)
