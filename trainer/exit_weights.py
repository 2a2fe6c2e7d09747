"""How much each exit counts in the loss (arXiv 2404.16710, section 4.1)."""

from trainer.curriculum import active_exits
from trainer.recipe_config import ExitLossConfig


def layer_weight(layer: int, num_layers: int, e_scale: float) -> float:
    """Return e(l), the weight of the exit after layer l before normalising.

    It is e_scale * (0 + 1 + ... + l), and L - 1 + e_scale * (0 + ... + L - 2) for the last layer;
    so the first layer's exit weighs nothing.
    """
    if layer == num_layers - 1:
        return layer + e_scale * (layer - 1) * layer / 2
    return e_scale * layer * (layer + 1) / 2


def check_exit_loss(config: ExitLossConfig | None, num_layers: int) -> None:
    """Refuse a section that would leave some step of this model without a loss.

    Raises:
        ValueError: naming the key and what to change.
    """
    if config is None:
        return
    if num_layers < 2:
        raise ValueError(
            f"exit_loss needs a model of at least 2 layers, got {num_layers}: remove the section"
        )
    if not config.include_last and config.period >= num_layers:
        raise ValueError(
            f"exit_loss.rotation {config.rotation} with include_last=false leaves steps of a model "
            f"of {num_layers} layers without a loss: make it less than {num_layers}"
        )


def exit_weights(
    config: ExitLossConfig | None, num_layers: int, step: int, total_steps: int
) -> dict[int, float]:
    """Return the weight of each exit that has one at a step; they sum to 1.

    Args:
        config: None gives the last exit all the weight.
        num_layers: L.
        step: optimiser step, from 0.
        total_steps: T.

    Raises:
        ValueError: as `check_exit_loss`.
    """
    check_exit_loss(config, num_layers)
    if config is None:
        return {num_layers: 1.0}
    exits = active_exits(config, num_layers, step, total_steps)
    weights = {e: layer_weight(e - 1, num_layers, config.e_scale) for e in exits}
    total = sum(weights.values())
    return {e: weight / total for e, weight in weights.items() if weight}
