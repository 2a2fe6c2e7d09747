"""Learning rate as a pure function of the step."""

import math

from trainer.recipe_config import ScheduleConfig


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Refuse a schedule whose parts do not fit into training.

    Raises:
        ValueError: naming the key, the steps there are, and what to change.
    """
    if config.warmup_steps >= total_steps:
        raise ValueError(
            f"schedule.warmup_steps {config.warmup_steps} must be less than the {total_steps} "
            "steps of training"
        )
    if config.kind == "wsd" and config.warmup_steps > total_steps - _decay_steps(
        config, total_steps
    ):
        raise ValueError(
            f"schedule.decay_fraction {config.decay_fraction} of {total_steps} steps and "
            f"schedule.warmup_steps {config.warmup_steps} overlap: make one of them smaller"
        )


def learning_rate(config: ScheduleConfig, peak: float, step: int, total_steps: int) -> float:
    """Return the learning rate of a step.

    It rises in a line to `peak`, first reached at step `warmup_steps`, and falls towards
    `min_ratio * peak`, which it would reach one step after the last: no step is wasted at 0.

    Args:
        config: shape of the curve, already checked by `check_schedule`.
        peak: highest learning rate.
        step: optimiser step, from 0.
        total_steps: steps of the whole training.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    share = 1 - (1 - config.min_ratio) * _fallen(config, step, total_steps)
    return peak * share


def _fallen(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return how much of the fall is done: 0 at the peak, 1 at the end of training."""
    if config.kind == "constant":
        return 0.0
    start = config.warmup_steps
    if config.kind == "wsd":
        start = total_steps - _decay_steps(config, total_steps)
    progress = max(0.0, (step - start) / (total_steps - start))
    return (1 - math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else progress


def _decay_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Return how many steps `wsd` falls in, at least one."""
    return max(1, round((config.decay_fraction or 0) * total_steps))
