"""What `python -m inference eval` is told."""

from dataclasses import dataclass
from typing import Literal

from inference.config import DEFAULT_SPECULATIONS
from inference.sweep.config import check_file


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Which tasks of lm-evaluation-harness to run, at which exit."""

    tasks: str
    """Names with commas between, as lm-eval knows them."""
    task_folder: str | None = None
    """A folder of task YAML files besides lm-eval's own: with local data, no network is needed."""
    exit_layer: int | None = None
    """1..L-1: log-likelihoods and texts are those of this exit; unset, of the full model."""
    verified: bool = False
    """With exit_layer: it only drafts, and the full model verifies. Texts and log-likelihoods are
    the full model's then; what is measured is that nothing changes."""
    num_speculations: int | None = None
    """Tokens drafted before each verification; only with verified, where it is 6 unless set."""
    batch_size: int = 8
    """Texts at once."""
    num_fewshot: int | None = None
    """Examples before each question; the task's own number unless set."""
    limit: int | None = None
    """Only so many first questions of each task: for trying out, not for figures."""
    max_length: int | None = None
    """Longest text in tokens; the beginning of longer ones is cut. The model's context unless
    set."""
    seed: int = 0
    """Of sampled texts."""
    output: Literal["text", "json"] = "text"
    """text prints lm-eval's table; json prints one object."""
    to: str | None = None
    """A .json file to write the object into as well."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"tasks={self.tasks!r} names no task")
        for name in ("exit_layer", "num_speculations", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must be at least 0, got {self.num_fewshot}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, got {self.max_length}")
        if self.verified and self.exit_layer is None:
            raise ValueError("verified=true needs exit_layer=1..L-1, which drafts")
        if self.num_speculations is not None and not self.verified:
            raise ValueError(
                f"num_speculations={self.num_speculations} would be ignored: nothing is drafted "
                "without verified=true"
            )
        if self.to is not None:
            check_file("to", self.to, ".json")

    @property
    def names(self) -> list[str]:
        """The tasks one by one."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]

    @property
    def speculations(self) -> int:
        """The draft length, the default resolved."""
        return self.num_speculations or DEFAULT_SPECULATIONS
