"""The section `evaluate`: what a second process measures of a run's checkpoints meanwhile."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOST_SPECULATIONS = 12
"""As inference, which does the work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Samples, measured speed and tasks of checkpoints, by a process beside rank 0."""

    every: int
    """Optimiser steps between checkpoints that are evaluated, a multiple of checkpoint.every; the
    last one is, too."""
    exits: tuple[int, ...]
    """Exits, 1..L, that continue the prompts, draft for the full model, and answer the tasks; with
    prompts the full model always continues them, too."""
    prompts: str | None = None
    """A file of prompts, one a line or .jsonl with a key prompt, SET:FILE or SET
    (docs/commands.md)."""
    num_samples: int | None = None
    """Take so many of the prompts, the same ones each time; all unless set."""
    max_new_tokens: int = 64
    """Most tokens to continue a prompt with."""
    num_speculations: int = 6
    """Tokens drafted before each verification."""
    tasks: str | None = None
    """Tasks of lm-evaluation-harness (the extra `eval`), with commas between."""
    task_folder: str | None = None
    """A folder of task YAML files besides lm-eval's own: with local data, no network is needed."""
    limit: int | None = None
    """Only so many first questions of each task."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    device: Literal["auto", "cpu"] = "cpu"
    """Where it computes: cpu leaves accelerators to the training, auto shares that of rank 0."""
    threads: int = 1
    """Of the processor, for that process, at a low priority."""
    keep: int = 2
    """So many checkpoints that wait for their evaluation are kept beyond checkpoint.keep_last."""

    def __post_init__(self) -> None:
        for name in ("every", "max_new_tokens", "threads", "num_samples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluate.{name} must be at least 1, got {value}")
        if self.keep < 0:
            raise ValueError(f"evaluate.keep must be at least 0, got {self.keep}")
        if not 1 <= self.num_speculations <= MOST_SPECULATIONS:
            raise ValueError(
                f"evaluate.num_speculations must be in 1..{MOST_SPECULATIONS}, got "
                f"{self.num_speculations}"
            )
        if not self.exits or list(self.exits) != sorted(set(self.exits)) or min(self.exits) < 1:
            raise ValueError(
                f"evaluate.exits {list(self.exits)} must name exits from 1 on, ascending, each once"
            )
        self._check_unused()

    def _check_unused(self) -> None:
        if self.prompts is None and not (self.tasks or "").strip(", "):
            raise ValueError(
                "evaluate has neither prompts nor tasks: give a file of prompts, names of tasks, "
                "or remove the section"
            )
        needs = {"prompts": ("num_samples",), "tasks": ("task_folder", "limit")}
        for need, names in needs.items():
            for name in names:
                if getattr(self, need) is None and getattr(self, name) is not None:
                    raise ValueError(
                        f"evaluate.{name} {getattr(self, name)} would be ignored without "
                        f"evaluate.{need}: leave it out"
                    )

    def check_schedule(self, checkpoint_every: int) -> None:
        """Check that there will be a checkpoint whenever one is to be evaluated.

        Raises:
            ValueError: if not.
        """
        if self.every % checkpoint_every:
            raise ValueError(
                f"evaluate.every {self.every} must be a multiple of checkpoint.every "
                f"{checkpoint_every}: only checkpoints are evaluated"
            )

    def check_exits(self, num_layers: int) -> None:
        """Check that a model of so many layers has these exits.

        Raises:
            ValueError: if it has not.
        """
        if self.exits[-1] > num_layers:
            raise ValueError(
                f"evaluate.exits {list(self.exits)}: a model of {num_layers} layers has exits "
                f"1..{num_layers}"
            )

    def check_here(self) -> None:
        """Check what depends on this machine, before a run begins.

        Raises:
            ValueError: if a file is missing, or lm-eval is.
        """
        if self.tasks is not None and importlib.util.find_spec("lm_eval") is None:
            raise ValueError(
                f"evaluate.tasks {self.tasks} needs lm-eval: install it, pip install -e '.[eval]', "
                "or remove tasks"
            )
        # A file's own name may have a colon in it.
        if self.prompts is not None and not Path(self.prompts).is_file():
            name, colon, file = self.prompts.partition(":")
            path = Path(file if colon else name)
            if (colon or path.suffix or len(path.parts) > 1) and not path.is_file():
                raise ValueError(f"evaluate.prompts {self.prompts}: there is no such file")
        if self.task_folder is not None and not Path(self.task_folder).is_dir():
            raise ValueError(f"evaluate.task_folder {self.task_folder}: there is no such folder")
