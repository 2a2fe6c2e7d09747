from typing import Any

import pytest

from trainer.recipe_config import ExitLossConfig, LayerDropoutConfig, ScheduleConfig


@pytest.mark.parametrize("max_prob", [-0.1, 1.0, float("nan")])
def test_a_drop_probability_outside_its_range_is_refused(max_prob: float) -> None:
    with pytest.raises(ValueError, match=r"^layer_dropout.max_prob must be in \[0, 1\), got"):
        LayerDropoutConfig(max_prob=max_prob)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"e_scale": 1.5, "curriculum": "all"}, "exit_loss.e_scale must be in"),
        ({"e_scale": -0.1, "curriculum": "all"}, "exit_loss.e_scale must be in"),
        ({"e_scale": 0.1, "curriculum": "rotational"}, "exit_loss.rotation must be at least 1"),
        (
            {"e_scale": 0.1, "curriculum": "rotational", "rotation": 0},
            "exit_loss.rotation must be at least 1",
        ),
        (
            {"e_scale": 0.1, "curriculum": "gradual", "rotation": 4},
            "exit_loss.rotation 4 has no effect with curriculum gradual",
        ),
        (
            {"e_scale": 0.1, "curriculum": "all", "rotation": 4},
            "exit_loss.rotation 4 has no effect with curriculum all",
        ),
        (
            {"e_scale": 0.1, "curriculum": "all", "include_last": False},
            "exit_loss.include_last=false needs curriculum rotational",
        ),
        (
            {"e_scale": 0.1, "curriculum": "gradual", "include_last": False},
            "exit_loss.include_last=false needs curriculum rotational",
        ),
        (
            {"e_scale": 0, "curriculum": "rotational", "rotation": 2, "include_last": False},
            "exit_loss.include_last=false needs curriculum rotational and e_scale > 0",
        ),
    ],
)
def test_an_exit_loss_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ExitLossConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, "schedule.warmup_steps must be >= 0"),
        ({"min_ratio": 1.1}, "schedule.min_ratio must be in"),
        ({"kind": "constant", "min_ratio": 0.1}, "schedule.min_ratio 0.1 has no effect"),
        ({"kind": "cosine", "decay_fraction": 0.2}, "schedule.decay_fraction 0.2 has no effect"),
        ({"kind": "wsd"}, "schedule.decay_fraction must be in"),
        ({"kind": "wsd", "decay_fraction": 0.0}, "schedule.decay_fraction must be in"),
        ({"kind": "wsd", "decay_fraction": 1.5}, "schedule.decay_fraction must be in"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ScheduleConfig(**settings)
