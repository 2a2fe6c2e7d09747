"""What all ranks of a run have to have in common at its start, as plain values by name."""

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path

from data_pipelines.prepare import SUMMARY_FILE
from trainer.config import PretrainConfig
from trainer.tensorboard import flatten

PACKAGES = ("torch", "numpy")
"""Whose versions decide numbers."""


def config_settings(config: PretrainConfig) -> dict[str, object]:
    """Return every key of the config, dotted, and the versions that it runs with."""
    versions = {f"version of {name}": version(name) for name in PACKAGES}
    versions["version of python"] = platform.python_version()
    return {**flatten(dataclasses.asdict(config)), **versions}


def data_settings(data_folder: Path, checkpoint: Path | None) -> dict[str, object]:
    """Return what a rank sees of the prepared data and of the checkpoint to go on from.

    A file that is not there, as on a node that does not share the folder, has no size.
    """
    names = (SUMMARY_FILE, "train.arrow", "valid.arrow")
    sizes = {f"size of {data_folder / name}": _size(data_folder / name) for name in names}
    return {**sizes, "newest checkpoint": None if checkpoint is None else checkpoint.name}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
