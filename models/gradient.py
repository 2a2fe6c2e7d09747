"""Gradients that are not autograd's."""

from torch import Tensor, nn


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add a gradient (any shape) to what a parameter has, which may be none."""
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
