"""The sections of the training recipe: layer dropout, exit loss, learning-rate schedule.

Source of the first two: LayerSkip, arXiv 2404.16710, section 4.1.
"""

from dataclasses import dataclass
from typing import Literal

from models.config import MOST_LAYERS

Curve = Literal["exp", "linear", "uniform"]
"""How drop probability grows with depth."""
OverTime = Literal["constant", "exp"]
"""How drop probability grows with training."""
Curriculum = Literal["all", "rotational", "gradual"]
"""Which exits take part in the loss of a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDropoutConfig:
    """Stochastic depth per sample: deeper layers are dropped more often (arXiv 2404.16710)."""

    max_prob: float
    """Drop probability of the last layer, p_max: 0.1 to 0.2 in the paper; 0 turns dropout off."""
    curve: Curve = "exp"
    """Over depth: `exp` 2^(l/(L-1)) - 1 as in the paper, `linear` l/(L-1), `uniform` 1."""
    over_time: OverTime = "constant"
    """Over training: `constant` for continued training, `exp` (from 0 to 1) from scratch."""
    granularity: Literal["sample", "batch"] = "sample"
    """Who drops a layer: every row by itself, or all rows of the step together."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_prob < 1:
            raise ValueError(
                f"layer_dropout.max_prob must be in [0, 1), got {self.max_prob}; 0.1 is usual"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitLossConfig:
    """Cross entropy at exits below the last, through the one shared head (arXiv 2404.16710)."""

    e_scale: float
    """Weight of the exits below the last: 0.1 to 0.2 for broad data, up to 1 for narrow data."""
    curriculum: Curriculum
    """Exits of a step: `all`, `rotational` every R-th, shifting each step, `gradual` from the top
    down, all from half of training."""
    rotation: int | None = None
    """R of `rotational`, in layers; L - 1 gives one exit below the last in each step."""
    include_last: bool = True
    """Whether every step trains the last exit; false only leaves it to `rotational`."""

    def __post_init__(self) -> None:
        if not 0 <= self.e_scale <= 1:
            raise ValueError(f"exit_loss.e_scale must be in [0, 1], got {self.e_scale}")
        if self.curriculum == "rotational" and (self.rotation is None or self.rotation < 1):
            raise ValueError(
                "exit_loss.rotation must be at least 1 with curriculum rotational, "
                f"got {self.rotation}"
            )
        if self.rotation is not None and self.rotation > MOST_LAYERS:
            raise ValueError(
                f"exit_loss.rotation must be at most {MOST_LAYERS}, got {self.rotation}"
            )
        if self.curriculum != "rotational" and self.rotation is not None:
            raise ValueError(
                f"exit_loss.rotation {self.rotation} has no effect with curriculum "
                f"{self.curriculum}: remove it or set exit_loss.curriculum=rotational"
            )
        if not self.include_last and (self.curriculum != "rotational" or self.e_scale == 0):
            raise ValueError(
                "exit_loss.include_last=false needs curriculum rotational and e_scale > 0, got "
                f"{self.curriculum} and {self.e_scale}: other steps would have no loss at all"
            )

    @property
    def period(self) -> int:
        """Steps until the same exits are enabled again: R, or 1 without rotation."""
        return self.rotation or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over training, as a share of `optim.lr`."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After warm-up: falling by `cosine` or `linear`, stable and then falling in a line (`wsd`), or
    `constant`."""
    warmup_steps: int = 0
    """Steps of linear rise before the peak."""
    min_ratio: float = 0.0
    """Where the fall ends, as a share of the peak."""
    decay_fraction: float | None = None
    """Share of all steps that `wsd` falls in, at the end."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must be >= 0, got {self.warmup_steps}")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"schedule.min_ratio must be in [0, 1], got {self.min_ratio}")
        if self.kind == "constant" and self.min_ratio:
            raise ValueError(
                f"schedule.min_ratio {self.min_ratio} has no effect with kind constant: remove it"
            )
        if self.kind != "wsd" and self.decay_fraction is not None:
            raise ValueError(
                f"schedule.decay_fraction {self.decay_fraction} has no effect with kind "
                f"{self.kind}: remove it or set schedule.kind=wsd"
            )
        if self.kind == "wsd" and not 0 < (self.decay_fraction or 0) <= 1:
            raise ValueError(
                "schedule.decay_fraction must be in (0, 1] with kind wsd, "
                f"got {self.decay_fraction}; 0.2 is usual"
            )
