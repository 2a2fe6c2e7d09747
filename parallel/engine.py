"""What a training step asks of whatever shards the model: the seam between FSDP2 and DeepSpeed."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from models.llama import Llama
from models.plan import LayerPlan
from models.tokens import Tokens
from parallel.config import ParallelConfig
from parallel.fill import Fill
from parallel.torch_engine import TorchEngine
from parallel.world import World


class Engine(Protocol):
    """A sharded model with its optimizer."""

    model: Llama

    def forward(self, ids: Tensor, tokens: Tokens, plan: LayerPlan) -> dict[int, Tensor]:
        """Run a plan on ids (B, S); return the hidden states (B, S, D) of each exit."""
        ...

    def backward(self, hiddens: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Back-propagate gradients (B, S, D) of hidden states; gradients of ranks are summed."""
        ...

    def add_gradient(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add a gradient (any shape) that is not autograd's, during the backward pass or before."""
        ...

    def grad_norm(self, max_norm: float | None) -> float:
        """Give unvisited parameters zero gradients, clip, return the global norm before it.

        Frozen ones have none.
        """
        ...

    def step(self, learning_rate: float) -> None:
        """Update the parameters, forget the gradients.

        A group of the optimizer with `lr_scale` learns at that share of the rate.
        """
        ...

    def forget(self) -> None:
        """Drop the gradients of the step instead of updating with them; nothing else changes."""
        ...

    def broken_gradients(self) -> list[str]:
        """Return the parameters, in the model's order, whose gradients here are not all finite.

        Here means in this rank's shards, of the sum over ranks. To be asked after `grad_norm`.
        """
        ...

    def before_update(self, job: Callable[[], object]) -> None:
        """Call a job at the start of every `step`, while the state is still the last one's."""
        ...

    def release(self) -> None:
        """Shard again what a forward pass without backward left gathered."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return this rank's shards of the parameters that are trained, by upstream name."""
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return this rank's shards of the optimizer's state, as tensors by name."""
        ...


def build_engine(
    model: Llama,
    config: ParallelConfig,
    world: World,
    fill: Fill,
    make_optimizer: Callable[[nn.Module], Optimizer],
) -> Engine:
    """Return the engine that the config names.

    Args:
        model: on the meta device: it is sharded before it takes any memory.
        config: of the sharding.
        world: this rank's place.
        fill: gives the shards their values, by calling what it is given on whole tensors.
        make_optimizer: makes the optimizer over the shards.
    """
    if config.zero is None:
        return TorchEngine(model, config, world, fill, make_optimizer)
    zero = _import_zero(world)
    return cast(Engine, zero.ZeroEngine(model, config, world, fill, make_optimizer))


def _import_zero(world: World) -> ModuleType:
    """Import `parallel.zero` and with it DeepSpeed, which takes seconds that only its users pay.

    Meanwhile nothing is written to stderr: DeepSpeed tries out which of its C++ parts could be
    built, none of which is needed here, and the linker tells about those that could not.
    """
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    sys.stderr.flush()
    with open(os.devnull, "w") as nothing:
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            return import_module("parallel.zero")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
