"""What `python -m inference follow` is told."""

from dataclasses import dataclass
from typing import Literal

from inference.config import DEFAULT_SPECULATIONS, MOST_SPECULATIONS, GenerateConfig
from inference.evaluate.config import EvalConfig
from inference.prompt_sets.prompt import check_sample


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowConfig:
    """Which checkpoints of a run to evaluate, and how."""

    exits: tuple[int, ...]
    """1..L, a list such as '[4,8,32]': exits that continue the prompts, draft for the full model,
    and answer the tasks. With prompts the full model always continues them, too."""
    every: int | None = None
    """Only checkpoints whose step is a multiple of it, and the last; all unless set."""
    until: int | None = None
    """The step after which nothing more is waited for; the run's own last step unless set."""
    prompts: str | None = None
    """As for bench: a file of prompts, SET:FILE, or SET from the hub."""
    num_samples: int | None = None
    """Take so many of the prompts, the same ones each time; all unless set."""
    max_new_tokens: int = 64
    """Most tokens to continue a prompt with."""
    num_speculations: int = DEFAULT_SPECULATIONS
    """Tokens drafted before each verification."""
    repeats: int = 1
    """Decode every prompt so many times and take the median of its seconds."""
    tasks: str | None = None
    """Tasks of lm-evaluation-harness, with commas between."""
    task_folder: str | None = None
    """As for eval: a folder of task YAML files."""
    limit: int | None = None
    """Only so many first questions of each task."""
    batch_size: int = 8
    """Texts of tasks at once."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""
    parent: int | None = None
    """The process that this one works for: at a low priority, and no longer than that lives."""

    def __post_init__(self) -> None:
        if not self.exits or min(self.exits) < 1:
            raise ValueError(f"exits={list(self.exits)} must name exits, 1..L, such as '[4,8]'")
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits={list(self.exits)} must be ascending, each once")
        for name in ("every", "until", "parent", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 1 <= self.num_speculations <= MOST_SPECULATIONS:
            raise ValueError(
                f"num_speculations must be in 1..{MOST_SPECULATIONS}, got {self.num_speculations}"
            )
        if self.prompts is None and self.tasks is None:
            raise ValueError("there is nothing to evaluate: add prompts=FILE or tasks=NAME,NAME")
        self._check_unused()
        check_sample(self.num_samples, 0)
        if self.tasks is not None:
            _ = self.questions(None)  # checks its own part
        _ = self.decoding()

    def _check_unused(self) -> None:
        for need, names in (("prompts", ("num_samples",)), ("tasks", ("task_folder", "limit"))):
            for name in names:
                value = getattr(self, name)
                if getattr(self, need) is None and value is not None:
                    raise ValueError(
                        f"{name}={value} would be ignored without {need}: leave it out"
                    )

    def decoding(
        self, strategy: str = "autoregressive", exit_layer: int | None = None
    ) -> GenerateConfig:
        """Return how to continue a prompt: by a strategy of `generate`, perhaps at an exit."""
        drafts = self.num_speculations if strategy == "self_speculative" else None
        return GenerateConfig(
            prompts=self.prompts,
            strategy=strategy,  # type: ignore[arg-type]
            exit_layer=exit_layer,
            num_speculations=drafts,
            max_new_tokens=self.max_new_tokens,
            output="json",
            dtype=self.dtype,
            device=self.device,
        )

    def questions(self, exit_layer: int | None) -> EvalConfig:
        """Return how to run the tasks at an exit; None: with the full model."""
        return EvalConfig(
            tasks=self.tasks or "",
            task_folder=self.task_folder,
            exit_layer=exit_layer,
            batch_size=self.batch_size,
            limit=self.limit,
            dtype=self.dtype,
            device=self.device,
        )
