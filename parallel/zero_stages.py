"""DeepSpeed's two optimizers behind one face: where masters and gradients lie, what is stale.

DeepSpeed has one optimizer for stages 1 and 2 and one for stage 3. Both line parameters up in flat
groups and give each rank a range of every group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank keeps its elements of one parameter."""

    group: int
    """Index of the flat group."""
    offset: int
    """First element in the rank's range of the group."""
    count: int
    """Elements; may be 0."""
    start: int
    """Index of the first of them in the parameter."""


class Stage(Protocol):
    """What `ZeroEngine` asks of an optimizer of DeepSpeed."""

    masters: Sequence[Tensor]
    """This rank's float32 range (N,) of each group: what the inner optimizer updates."""

    def place(self, parameter: nn.Parameter) -> Place:
        """Say where this rank keeps its elements of a parameter (any shape)."""
        ...

    def begin(self) -> None:
        """Do what the first gradient of a backward pass does, for one that has none."""
        ...

    def hand_in(self, parameter: nn.Parameter) -> None:
        """Reduce a gradient that was put on a parameter (any shape) without autograd's doing."""
        ...

    def finish(self) -> None:
        """Reduce what is not reduced yet; then `gradients` are the step's."""
        ...

    def gradients(self) -> Iterator[Sequence[Tensor]]:
        """Yield this rank's gradients of each group, in parts (any shape) that follow one another.

        Each element of the model is on one rank only.
        """
        ...

    def refresh(self) -> None:
        """Let the weights that compute be the masters."""
        ...

    def forget(self) -> None:
        """Clear after an update what DeepSpeed would take for gradients of the next step."""
        ...

    def drop(self) -> None:
        """Do what DeepSpeed does at the end of an update, without the update."""
        ...


class _SumOfRanks:
    """Stages 1 and 2."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._engine, self._zero = engine, engine.optimizer
        # The loss is divided by the global token count, so the sum over ranks is the gradient.
        self._zero.gradient_average = False
        self.masters: Sequence[Tensor] = self._zero.single_partition_of_fp32_groups

    def place(self, parameter: nn.Parameter) -> Place:
        return _linked(parameter)

    def begin(self) -> None:
        self._zero.setup_buckets()

    def hand_in(self, parameter: nn.Parameter) -> None:
        if self._zero.partition_gradients:  # stage 1 reduces at the end of the step
            _fire_hooks(parameter)

    def finish(self) -> None:
        if self._zero.partition_gradients:
            self._zero.finalize_gradient_accumulation_boundary()
        else:
            self._engine.allreduce_gradients()

    def gradients(self) -> Iterator[Sequence[Tensor]]:
        return _gradients(self._zero, self.masters, on_host=self._zero.cpu_offload)

    def refresh(self) -> None:
        self._zero.update_lp_params()

    def forget(self) -> None:
        if self._zero.cpu_offload:
            # Only gradients that were reduced are copied there; others would be used once more.
            for (gradient,) in _on_host(self.masters):
                gradient.zero_()

    def drop(self) -> None:
        zero = self._zero
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero._release_preflattened_grad_buffers()
        zero.zero_grad(set_to_none=True)
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()
        for group in zero.averaged_gradients:
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None


class _Stage3:
    """Stage 3."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._zero = engine.optimizer
        # What a sum is divided by: 1 makes the average over ranks a sum again.
        self._zero._gradient_averaging_world_size = lambda parameters, world_size: 1
        self.masters: Sequence[Tensor] = self._zero.fp32_partitioned_groups_flat

    def place(self, parameter: nn.Parameter) -> Place:
        shard: Any = parameter
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = self._zero._get_param_partition_rank(parameter) * size
        return Place(group, offset, max(0, min(size, shard.ds_numel - start)), start)

    def begin(self) -> None:
        pass

    def hand_in(self, parameter: nn.Parameter) -> None:
        _fire_hooks(parameter)

    def finish(self) -> None:
        if self._zero.offload_optimizer:
            # DeepSpeed would copy only what was reduced, and leave old gradients in the rest.
            sizes = [len(master) for master in self.masters]
            parts = self._zero.grad_partitions_flat_buffer.split(sizes)
            for (gradient,), part in zip(_on_host(self.masters), parts, strict=True):
                gradient.copy_(part)

    def gradients(self) -> Iterator[Sequence[Tensor]]:
        return _gradients(self._zero, self.masters, on_host=self._zero.offload_optimizer)

    def refresh(self) -> None:
        zero = self._zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def forget(self) -> None:
        """Clear the partitions, for DeepSpeed overwrites only those of parameters that it reduces:
        of a layer that nothing visits it would use the last gradient once more, silently.
        """
        self._zero.grad_partitions_flat_buffer.zero_()

    def drop(self) -> None:
        self._zero.zero_grad(set_to_none=True)
        self._zero.reset_cpu_buffers()
        self._zero.averaged_gradients.clear()


def stage_of(engine: DeepSpeedEngine) -> Stage:
    """Return the face of the optimizer that DeepSpeed has chosen."""
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _Stage3(engine)
    return _SumOfRanks(engine)


def fill_frozen(parameter: nn.Parameter, whole: Tensor) -> None:
    """Copy a whole tensor (any shape) into a parameter without a master, or into its partition."""
    shard: Any = parameter
    part = getattr(shard, "ds_tensor", None)
    if part is None:  # stages 1 and 2 have all of it on every rank
        parameter.copy_(whole)
        return
    start = dist.get_rank() * part.numel()
    mine = whole.flatten()[start : start + part.numel()]
    part.narrow(0, 0, len(mine)).copy_(mine)  # the last partition is padded


def _gradients(
    zero: Any, masters: Sequence[Tensor], *, on_host: bool
) -> Iterator[Sequence[Tensor]]:
    """Yield each group's gradients (any shape) of an optimizer, from where it keeps them."""
    return _on_host(masters) if on_host else iter(zero.averaged_gradients.values())


def _on_host(masters: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield the gradient (N,) of each master in host memory."""
    for master in masters:
        assert master.grad is not None, "DeepSpeed makes it when it starts"
        yield [master.grad]


def _linked(parameter: nn.Parameter) -> Place:
    """Read the place from the link that DeepSpeed keeps on a parameter (any shape)."""
    shard: Any = parameter
    link = shard._hp_mapping
    if link is None:
        return Place(0, 0, 0, 0)
    whole, flat = link.lp_fragment_address, link.hp_fragment_address
    return Place(link.param_group_index, flat.start, flat.numel, whole.start)


def _fire_hooks(parameter: nn.Parameter) -> None:
    """Do what autograd does when a gradient (any shape) has been accumulated."""
    hooks: Any = parameter._post_accumulate_grad_hooks
    for hook in hooks.values():
        hook(parameter)
