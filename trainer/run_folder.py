"""What a run folder says of how the run was made: config, versions, commit, local changes.

All of it is that of the last start.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import TextIO

from configs.command import ROOT
from configs.load import load, to_yaml
from parallel.checkpoint import CHECKPOINTS
from trainer.config import PretrainConfig

CONFIG = "config.yaml"
FIXED = ("model", "init_from", "lora", "freeze", "data", "batch", "seed")
"""Sections that a resumed run may not change: its loss curve would break."""
SOURCE_VERSION = ("commit.txt", "diff.patch")
"""The commit that the code is, and what was changed since."""
PACKAGES = ("torch", "transformers", "datasets", "sentencepiece", "omegaconf", "safetensors")


def checkpoints_folder(config: PretrainConfig) -> Path:
    """Return where the run's checkpoints are."""
    return Path(config.run_folder) / CHECKPOINTS


def check_resumable(config: PretrainConfig) -> None:
    """Refuse to go on with a run under a config that makes it another run.

    Raises:
        ValueError: naming the first section that differs.
    """
    path = Path(config.run_folder) / CONFIG
    before = load(PretrainConfig, path)
    for name in FIXED:
        if getattr(before, name) != getattr(config, name):
            raise ValueError(
                f"{name} differs from {path}, the run to go on with: choose another run_folder, or "
                f"give the old value back ({getattr(before, name)})"
            )


def claim(config: PretrainConfig) -> TextIO:
    """Make the run folder and lock it for as long as the returned file is open.

    A second run in the same folder would delete the first one's checkpoints.

    Raises:
        RuntimeError: if another process trains in it.
    """
    folder = Path(config.run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read()[:200].strip() or "another process"
        file.close()
        raise RuntimeError(
            f"{holder} is training in run_folder {folder}: wait for it, end it, or choose another "
            "run_folder"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def describe_run(config: PretrainConfig) -> None:
    """Write config.yaml, versions.json, commit.txt and diff.patch into the run folder.

    At every start, for some of it may change when a run goes on, such as its last step. Each file
    is replaced whole.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    texts = {CONFIG: to_yaml(config), "versions.json": json.dumps(versions, indent=1)}
    for name, text in (texts | source_version()).items():
        new = Path(config.run_folder) / f"{name}.tmp"
        new.write_text(text)
        new.replace(new.with_suffix(""))


def source_version() -> dict[str, str]:
    """Return commit.txt and diff.patch of the source folder, by name.

    A job's copy of the code has them beside it (`slurm/prepare.py`); any checkout that it may lie
    in has moved on.
    """
    if all((ROOT / name).is_file() for name in SOURCE_VERSION):
        return {name: (ROOT / name).read_text() for name in SOURCE_VERSION}
    commit = _git("rev-parse", "HEAD") or "not a git checkout\n"
    return dict(zip(SOURCE_VERSION, (commit, _git("diff", "HEAD")), strict=True))


def _git(*arguments: str) -> str:
    """Return what git says of the source folder; empty where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
