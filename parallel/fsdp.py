"""FSDP2: full and hybrid sharding, on one process or many.

Each layer is a unit of its own, gathered when it is visited; embedding, norm and head belong to the
root, which stays gathered from forward to backward, so that any number of exits costs one gather
and one reduction of the head.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from models.execute import Call, plain_call
from models.init import Assign
from models.llama import Llama
from models.plan import LayerPlan, Parts
from models.tokens import Tokens
from parallel.config import ParallelConfig
from parallel.world import World

Fill = Callable[[Llama, Assign], None]
"""Gives a sharded model its values: calls the second on each parameter with its whole tensor."""


def make_mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """Return the 1-D mesh of full sharding, or the 2-D mesh (copies, shards) of hybrid sharding.

    Raises:
        ValueError: if the shard groups do not fill the world.
    """
    shard_size = config.fsdp.shard_size or world.size
    if world.size % shard_size:
        raise ValueError(
            f"parallel.fsdp.shard_size {shard_size} must divide the number of ranks {world.size}"
        )
    kind, copies = world.device.type, world.size // shard_size
    if copies == 1:
        return init_device_mesh(kind, (shard_size,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (copies, shard_size), mesh_dim_names=("copy", "shard"))


def recomputed_call(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
    """Call the layer on h (B, S, D), keeping its input only and running it again in backward."""
    out = checkpoint(layer, h, tokens, parts, use_reentrant=False)
    return cast(Tensor, out)


def shard(model: Llama, config: ParallelConfig, mesh: DeviceMesh) -> None:
    """Wrap each layer and the root in place; gradients of ranks are summed, not averaged.

    No static prefetch lists: they would gather layers that the plan leaves out.
    """
    policy = MixedPrecisionPolicy()
    if config.precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers.values():
        if config.compile:
            layer.compile(fullgraph=True)
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.fsdp.reshard_after_forward,
        )
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the global token count, so the sum over ranks is the gradient.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def copy_shard(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Copy this rank's part of a whole tensor into a sharded parameter, without communication."""
    assert isinstance(parameter, DTensor), "only shards are filled here"
    size, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    part = tensor[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
    parameter.to_local().copy_(part)


class FsdpEngine:
    """A Llama under FSDP2 with its optimizer; see `parallel.engine.Engine`."""

    def __init__(
        self,
        model: Llama,
        config: ParallelConfig,
        world: World,
        fill: Fill,
        make_optimizer: Callable[[nn.Module], Optimizer],
    ) -> None:
        self.mesh = make_mesh(config, world)
        shard(model, config, self.mesh)
        self.model = model.to_empty(device=world.device)
        fill(self.model, copy_shard)
        self._call: Call = recomputed_call if config.recompute else plain_call
        self._optimizer = make_optimizer(model)

    def forward(self, ids: Tensor, tokens: Tokens, plan: LayerPlan) -> dict[int, Tensor]:
        """Run a plan on ids (B, S); return the hidden states (B, S, D) of each exit."""
        return cast(dict[int, Tensor], self.model(ids, tokens, plan, self._call))

    def backward(self, hiddens: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Back-propagate gradients (B, S, D) of hidden states; gradients of ranks are summed."""
        torch.autograd.backward(list(hiddens), list(gradients))

    def grad_norm(self, max_norm: float | None) -> float:
        """Give unvisited parameters zero gradients, clip, return the global norm before it."""
        for parameter in self.model.parameters():
            if parameter.grad is None:
                # Law 3: a layer that nothing visited has gradient zero, so that its moments and
                # weight decay move as in a single process, and its optimizer state exists.
                parameter.grad = torch.zeros_like(parameter)
        limit = float("inf") if max_norm is None else max_norm
        norm = clip_grad_norm_(self.model.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, learning_rate: float) -> None:
        """Update the parameters, forget the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Shard again what a forward pass without backward left gathered."""
        cast(FSDPModule, self.model).reshard()

    def weights(self) -> dict[str, Tensor]:
        """Return this rank's shards of the parameters by upstream name."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the local shards of Adam's state: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`.

        State that no step has made yet is made as zeros: what a checkpoint is read into.
        """
        tensors: dict[str, Tensor] = {}
        for name, p in self.model.named_parameters():
            state = self._optimizer.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device)  # where fused AdamW keeps it
                state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
            tensors |= {f"{key}.{name}": value for key, value in state.items()}
        return tensors
