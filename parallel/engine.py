"""What a training step asks of whatever shards the model: the seam between FSDP2 and DeepSpeed."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from models.llama import Llama
from models.plan import LayerPlan
from models.tokens import Tokens
from parallel.config import ParallelConfig
from parallel.torch_engine import Fill, TorchEngine
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

    def grad_norm(self, max_norm: float | None) -> float:
        """Give unvisited parameters zero gradients, clip, return the global norm before it."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the parameters, forget the gradients."""
        ...

    def before_update(self, job: Callable[[], object]) -> None:
        """Call a job at the start of every `step`, while the state is still the last one's."""
        ...

    def release(self) -> None:
        """Shard again what a forward pass without backward left gathered."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return this rank's shards of the parameters by upstream name."""
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
    return TorchEngine(model, config, world, fill, make_optimizer)
