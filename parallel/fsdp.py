"""FSDP2: full and hybrid sharding over two ranks or more.

Each layer is a unit of its own, gathered when it is visited; embedding, norm and head belong to the
root, which stays gathered from forward to backward, so that any number of exits costs one gather
and one reduction of the head.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from models.llama import Llama
from parallel.config import ParallelConfig
from parallel.world import World


def make_mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """Return the 1-D mesh of full sharding, or the 2-D mesh (copies, shards) of hybrid sharding.

    Raises:
        ValueError: if the shard groups do not fill the world.
    """
    shard_size = config.sharding.ranks_of_a_copy(world.size)
    kind, copies = world.device.type, world.size // shard_size
    if copies == 1:
        return init_device_mesh(kind, (shard_size,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (copies, shard_size), mesh_dim_names=("copy", "shard"))


def shard(model: Llama, config: ParallelConfig, mesh: DeviceMesh) -> None:
    """Wrap each layer and the root in place; gradients of ranks are summed, not averaged.

    No static prefetch lists: they would gather layers that the plan leaves out.
    """
    policy = MixedPrecisionPolicy()
    if config.precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers.values():
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.sharding.reshard_after_forward,
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
