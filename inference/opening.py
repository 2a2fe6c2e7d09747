"""How a command asks for its model: it says where it is to be and in which precision, no more."""

from collections.abc import Callable
from typing import Protocol

import torch

from inference.load import Loaded


class Placed(Protocol):
    """A config that says these two things."""

    @property
    def dtype(self) -> str:
        """Name of a torch dtype."""
        ...

    @property
    def device(self) -> str:
        """`auto` or `cpu`."""
        ...


Open = Callable[[str, Placed], Loaded]
"""From a run's folder, a model's folder or a hub id to the model."""


def device_of(loaded: Loaded) -> torch.device:
    """Return where a model is."""
    return loaded.model.model.embed_tokens.weight.device


def device_name(device: torch.device) -> str:
    """Return the name of a device: an accelerator's own, or cpu."""
    if device.type == "cpu":
        return "cpu"
    return str(torch.get_device_module(device).get_device_name(device))
