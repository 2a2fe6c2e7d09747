"""The engine of plain torch: FSDP2 on several ranks, nothing at all around the model on one.

On one rank FSDP2 would train the same, but copy every weight before and every gradient after its
use: a fifth of a step on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from math import inf
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from models.execute import plain_call
from models.gradient import add_gradient
from models.init import copy_whole
from models.llama import Llama
from models.plan import LayerPlan
from models.ranges import in_ranges, named
from models.tokens import Tokens
from parallel.config import ParallelConfig
from parallel.fill import Fill
from parallel.finite import is_broken
from parallel.frozen import end_at_leaves, trained_parameters
from parallel.fsdp import copy_shard, make_mesh, shard
from parallel.recompute import recomputed_call
from parallel.world import World


class TorchEngine:
    """A Llama with its optimizer; see `parallel.engine.Engine`.

    `model` computes. `_masters` holds the weights that the optimizer updates: the same module,
    unless one rank alone computes in bfloat16; then `model` is a bfloat16 copy, and what is frozen
    is in it only. (FSDP2 casts by itself when it gathers.)
    """

    def __init__(
        self,
        model: Llama,
        config: ParallelConfig,
        world: World,
        fill: Fill,
        make_optimizer: Callable[[nn.Module], Optimizer],
    ) -> None:
        self.model = self._masters = model
        assign = copy_whole
        if world.size == 1 and config.precision == "bfloat16":
            self.model = deepcopy(model).to(torch.bfloat16).to_empty(device=world.device)
        if config.compile:
            for layer in self.model.layers.values():
                layer.compile(fullgraph=True)
        config.sharding.ranks_of_a_copy(world.size)  # refuses what does not fit, one rank included
        if world.size > 1:
            shard(model, config, make_mesh(config, world))
            assign = copy_shard
        self._masters.to_empty(device=world.device)
        if self.model is not self._masters:
            _share_frozen(self.model, self._masters)
        fill(self._masters, assign)
        end_at_leaves(self.model)
        self._trained = trained_parameters(self._masters)
        self._is_stale = True
        self._call = in_ranges(recomputed_call if config.recompute else plain_call)
        self._optimizer = make_optimizer(self._masters)
        self._zeros: dict[torch.Size, Tensor] = {}

    def forward(self, ids: Tensor, tokens: Tokens, plan: LayerPlan) -> dict[int, Tensor]:
        """Run a plan on ids (B, S); return the hidden states (B, S, D) of each exit."""
        if self._is_stale and self.model is not self._masters:
            with torch.no_grad():
                computing, masters = zip(*self._pairs(), strict=True)
                torch._foreach_copy_(computing, masters)
        self._is_stale = False
        with named("forward"):
            return cast(dict[int, Tensor], self.model(ids, tokens, plan, self._call))

    def backward(self, hiddens: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Back-propagate gradients (B, S, D) of hidden states; gradients of ranks are summed."""
        with named("backward"):
            torch.autograd.backward(list(hiddens), list(gradients))
            if self.model is not self._masters:
                for computed, master in self._pairs():
                    _hand_over(computed, master)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Yield what computes beside what is updated."""
        computed = trained_parameters(self.model).values()
        return zip(computed, self._trained.values(), strict=True)

    def add_gradient(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add a gradient (any shape) that is not autograd's, during the backward pass."""
        add_gradient(parameter, gradient)

    def grad_norm(self, max_norm: float | None) -> float:
        """Give unvisited parameters zero gradients, clip, return the global norm before it."""
        parameters = list(self._trained.values())
        with named("reduction"):
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            whole = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if (
            max_norm is not None and max_norm < whole < inf
        ):  # a pass over all gradients, mostly spared
            clip_grads_with_norm_(parameters, max_norm, norm)
        for parameter in parameters:
            if parameter.grad is None:
                # Law 3: a layer that nothing visited has gradient zero, so that its moments and
                # weight decay move as in a single process, and its optimizer state exists. All
                # parameters of one shape share the zeros, which nobody writes to.
                if parameter.shape not in self._zeros:
                    self._zeros[parameter.shape] = torch.zeros_like(parameter)
                parameter.grad = self._zeros[parameter.shape]
        return whole

    def step(self, learning_rate: float) -> None:
        """Update the parameters, forget the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        with named("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self._is_stale = True

    def forget(self) -> None:
        """Drop the gradients of the step instead of updating with them; nothing else changes."""
        self._optimizer.zero_grad(set_to_none=True)

    def broken_gradients(self) -> list[str]:
        """Return the parameters whose gradients in this rank's shards are not all finite."""
        gradients = {name: p.grad for name, p in self._trained.items()}
        return [name for name, grad in gradients.items() if grad is not None and is_broken(grad)]

    def before_update(self, job: Callable[[], object]) -> None:
        """Call a job at the start of every `step`, while the state is still the last one's."""

        def hook(*_: object) -> None:
            job()

        self._optimizer.register_step_pre_hook(hook)

    def release(self) -> None:
        """Shard again what a forward pass without backward left gathered."""
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def weights(self) -> dict[str, Tensor]:
        """Return this rank's shards of what is trained, by upstream name, to read or write."""
        self._is_stale = True
        return {name: p.detach() for name, p in self._trained.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the local shards of Adam's state: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`.

        State that no step has made yet is made as zeros: what a checkpoint is read into.
        """
        tensors: dict[str, Tensor] = {}
        for name, p in self._trained.items():
            state = self._optimizer.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device)  # where fused AdamW keeps it
                state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
            tensors |= {f"{key}.{name}": value for key, value in state.items()}
        return tensors


def _share_frozen(computing: Llama, masters: Llama) -> None:
    """Let the masters have the frozen parameters of the model that computes, in its type."""
    for name, parameter in computing.named_parameters():
        if not parameter.requires_grad:
            module, _, own = name.rpartition(".")
            setattr(masters.get_submodule(module), own, parameter)


def _hand_over(computed: nn.Parameter, master: nn.Parameter) -> None:
    """Add the gradient of a parameter (any shape) to that of its float32 master, and forget it."""
    if computed.grad is None:
        return
    if master.grad is None:
        master.grad = computed.grad.to(master.dtype)
    else:
        master.grad += computed.grad
    computed.grad = None
