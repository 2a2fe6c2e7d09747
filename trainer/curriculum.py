"""What training turns on when: pure functions of the step (arXiv 2404.16710, section 4.1).

Exits are named 1..L: exit e is the residual stream after layers 0..e-1; the paper's l is e - 1.
"""

from trainer.recipe_config import ExitLossConfig, OverTime


def dropout_scale(over_time: OverTime, step: int, total_steps: int) -> float:
    """Return S(t), the share of its full drop probability that a layer has at a step.

    `exp` is 2^(t/(T-1)) - 1: 0 at the first step, 1 at the last.
    """
    if over_time == "constant":
        return 1.0
    return float(2.0 ** (step / max(total_steps - 1, 1)) - 1.0)


def active_exits(
    config: ExitLossConfig | None, num_layers: int, step: int, total_steps: int
) -> tuple[int, ...]:
    """Return the exits that the curriculum enables at a step, ascending; without a section, L.

    Exit 1 may be among them though its weight is 0: `exit_weights` leaves it out.

    Args:
        config: None trains the last exit only.
        num_layers: L.
        step: t, the optimiser step from 0: all microbatches of a step have the same exits.
        total_steps: T.
    """
    if config is None:
        return (num_layers,)
    active = [
        layer + 1
        for layer in range(num_layers)
        if (layer == num_layers - 1 and config.include_last)
        or _enabled(config, num_layers, layer, step, total_steps)
    ]
    return tuple(active)


def _enabled(
    config: ExitLossConfig, num_layers: int, layer: int, step: int, total_steps: int
) -> bool:
    """Return C(t, l): whether the curriculum enables the exit after this layer."""
    if config.curriculum == "rotational":
        return (layer - step) % config.period == 0
    if config.curriculum == "gradual":  # one more every T / 2L steps, from the top down
        return 2 * num_layers * step >= total_steps * (num_layers - layer)
    return True
