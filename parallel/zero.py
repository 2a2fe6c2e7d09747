"""The engine of DeepSpeed: ZeRO stages 1, 2 and 3 (arXiv 1910.02054), on any number of ranks.

DeepSpeed shards, reduces, updates and gathers. What it does not do by itself is done here: layers
that a plan leaves out have gradient zero at every stage, the head's gradient may come from outside
autograd, the norm is known before the update, and master weights are float32 from the first step.

Imported only when a config names `zero`: DeepSpeed takes seconds to import.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from math import inf
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime.zero import partitioned_param_coordinator
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn
from torch.optim import Optimizer

from models.execute import plain_call
from models.gradient import add_gradient
from models.layer import Layer
from models.llama import Llama
from models.plan import LayerPlan
from models.ranges import in_ranges, named
from models.tokens import Tokens
from parallel.config import ParallelConfig
from parallel.fill import Fill
from parallel.flat_shard import FlatShard
from parallel.frozen import end_at_leaves, trained_parameters, with_gradient
from parallel.recompute import recomputed_call
from parallel.world import World
from parallel.zero_config import to_deepspeed
from parallel.zero_stages import Place, fill_frozen, stage_of


class ZeroEngine:
    """A Llama with its optimizer; see `parallel.engine.Engine`."""

    def __init__(
        self,
        model: Llama,
        config: ParallelConfig,
        world: World,
        fill: Fill,
        make_optimizer: Callable[[nn.Module], Optimizer],
    ) -> None:
        assert config.zero is not None, "chosen by the config"
        self.model, shape = model, deepcopy(model)  # on the meta device, where parameters are whole
        _adjust_deepspeed()
        settings = to_deepspeed(config, sum(p.numel() for p in model.parameters()))
        backend = dist.get_default_backend_for_device(world.device)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        _allocate(model, config, world, settings)
        for layer in model.layers.values():
            if config.compile:
                layer.compile(fullgraph=True)
        if config.zero.stage == 3:
            set_z3_leaf_modules(model, [Layer])  # a layer is gathered and reduced at once
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model), config=settings
        )
        self._stage = stage_of(self._engine)
        self._engine.set_gradient_accumulation_boundary(False)
        self._head: list[Any] = model.head_parameters() if config.zero.stage == 3 else []
        end_at_leaves(model)
        trained = trained_parameters(model)
        self._places = {name: self._stage.place(p) for name, p in trained.items()}
        self._shapes = {name: tuple(p.shape) for name, p in shape.named_parameters()}
        self._is_stale = True
        self._given: list[nn.Parameter] = []
        self._before_update: list[Callable[[], object]] = []
        call = recomputed_call if config.recompute else plain_call
        self._call = in_ranges(with_gradient(call) if config.zero.stage == 3 else call)
        frozen = {name: p for name, p in model.named_parameters() if name not in trained}
        _fill(shape, fill, self.weights(), frozen)

    def forward(self, ids: Tensor, tokens: Tokens, plan: LayerPlan) -> dict[int, Tensor]:
        """Run a plan on ids (B, S); return the hidden states (B, S, D) of each exit."""
        zero = self._engine.optimizer
        if self._is_stale:
            self._stage.refresh()
            self._is_stale = False
        # What DeepSpeed does before a forward pass. Its own would hand out copies of the hidden
        # states, on which lower exits could not join the backward pass.
        zero.clear_backward_seen_flag()
        if self._head:
            zero.parameter_offload.get_param_coordinator().reset_step()
        with named("forward"):
            hiddens = self.model.forward(ids, tokens, plan, self._call)
            if self._head:
                self._head[0].all_gather(param_list=self._head)
        return hiddens

    def backward(self, hiddens: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Back-propagate gradients (B, S, D) of hidden states; gradients of ranks are summed."""
        with named("backward"):
            self._engine._running_engine_backward = True  # the epilogue is called below
            try:
                self._engine._backward_prologue()
                torch.autograd.backward(list(hiddens), list(gradients))
                self._hand_in(started=not all(h.is_leaf for h in hiddens))
                self._engine._backward_epilogue()
            finally:
                self._engine._running_engine_backward = False
                self._given.clear()

    def _hand_in(self, *, started: bool) -> None:
        """Let DeepSpeed reduce what autograd has not brought; it wants to see autograd at work."""
        probe = torch.zeros((), requires_grad=True)

        def reduce(_: Tensor) -> None:
            for parameter in self._given:
                self._stage.hand_in(parameter)

        if not started:
            self._stage.begin()
            probe.register_hook(reduce)  # type: ignore[no-untyped-call]
            probe.backward()  # type: ignore[no-untyped-call]
        else:
            reduce(probe)

    def add_gradient(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add a gradient (any shape) that is not autograd's, during the backward pass."""
        add_gradient(parameter, gradient)
        if parameter is not self.model.model.embed_tokens.weight:
            # A tied head's joins what autograd is about to add and hand in for the embedding.
            self._given.append(parameter)

    def grad_norm(self, max_norm: float | None) -> float:
        """Give unvisited parameters zero gradients, clip, return the global norm before it."""
        with named("reduction"):
            self._engine.set_gradient_accumulation_boundary(True)
            self._stage.finish()
            mine = list(chain.from_iterable(self._stage.gradients()))
            square = torch.stack([_square_norm(part) for part in mine]).sum()
            dist.all_reduce(square)
            norm = float(square.sqrt())
        if max_norm is not None and max_norm < norm < inf:
            torch._foreach_mul_(mine, max_norm / (norm + 1e-6))
        return norm

    def step(self, learning_rate: float) -> None:
        """Update the parameters, forget the gradients."""
        for job in self._before_update:
            job()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        with named("optimizer"):
            self._engine.step()
            self._stage.forget()
            self._engine.set_gradient_accumulation_boundary(False)

    def forget(self) -> None:
        """Drop the gradients of the step instead of updating with them; nothing else changes."""
        self._stage.drop()
        self._stage.forget()
        self._engine.set_gradient_accumulation_boundary(False)

    def broken_gradients(self) -> list[str]:
        """Return the parameters whose gradients in this rank's ranges are not all finite."""
        groups = self._stage.gradients()
        finite = [torch.cat([p.isfinite().flatten() for p in parts]) for parts in groups]
        return [
            name
            for name, place in self._places.items()
            if not finite[place.group].narrow(0, place.offset, place.count).all()
        ]

    def before_update(self, job: Callable[[], object]) -> None:
        """Call a job at the start of every `step`, while the state is still the last one's."""
        self._before_update.append(job)

    def release(self) -> None:
        """Shard again what a forward pass without backward left gathered."""
        if self._head:
            self._engine.optimizer._partition_all_parameters()

    def weights(self) -> dict[str, Tensor]:
        """Return this rank's shards of what is trained, by upstream name, to read or write."""
        self._is_stale = True
        masters = [master.detach() for master in self._stage.masters]
        return {name: self._shard(name, masters) for name in self._places}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the local shards of Adam's state: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`.

        State that no step has made yet is made as zeros: what a checkpoint is read into.
        """
        inner = self._engine.optimizer.optimizer.state
        for master in self._stage.masters:
            state = inner[master]
            if not state:
                state["step"] = torch.zeros((), device=master.device)
                state["exp_avg"] = torch.zeros_like(master, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(master, requires_grad=False)
        tensors: dict[str, Tensor] = {}
        for name, place in self._places.items():
            tensors[f"step.{name}"] = inner[self._stage.masters[place.group]]["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            flat = [inner[master][key] for master in self._stage.masters]
            tensors |= {f"{key}.{name}": self._shard(name, flat) for name in self._places}
        return tensors

    def _shard(self, name: str, groups: Sequence[Tensor]) -> FlatShard:
        place: Place = self._places[name]
        local = groups[place.group].narrow(0, place.offset, place.count)
        return FlatShard(local, self._shapes[name], place.start)


def _adjust_deepspeed() -> None:
    """Turn off what is not wanted of DeepSpeed and cannot be configured; ADR 0010 says more."""
    # Built with a C++ compiler at first use, and used by DeepSpeed's inference only.
    __compatible_ops__["deepspeed_shm_comm"] = False
    # At stage 1 in bfloat16 it would choose an optimizer that reduces the gradients of all layers,
    # visited or not, and is slower; the one of the other precisions gives the same bits.
    DeepSpeedEngine._do_optimizer_sanity_check = lambda engine, optimizer: ZERO_OPTIMIZATION
    # With every change of the plan stage 3 would compare what it visits among ranks, and wait for
    # it; `parallel.agree` has done so before the step.
    partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda ints: None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Once for every collective of every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)


def _square_norm(tensor: Tensor) -> Tensor:
    """Return the squared norm of a tensor (any shape), 0-d in float64.

    A flat group is long: torch's norm of 50M numbers in float32 is off by 0.4% on a CPU.
    """
    flat = tensor.flatten()
    whole = len(flat) // 1024 * 1024
    rows: Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, 1024), dim=1)  # (N / 1024,)
    return rows.double().square().sum() + flat[whole:].double().square().sum()


@torch.no_grad()
def _fill(
    shape: Llama, fill: Fill, shards: dict[str, Tensor], frozen: dict[str, nn.Parameter]
) -> None:
    """Fill shards and frozen parameters, by name, with what a model of this shape is given."""
    names = {id(parameter): name for name, parameter in shape.named_parameters()}

    def assign(parameter: nn.Parameter, whole: Tensor) -> None:
        name = names[id(parameter)]
        if name in frozen:
            fill_frozen(frozen[name], whole)
            return
        shard = shards[name]
        assert isinstance(shard, FlatShard), "DeepSpeed cuts anywhere"
        local = shard.to_local()
        local.copy_(whole.flatten()[shard.start : shard.start + len(local)])

    fill(shape, assign)


def _allocate(model: Llama, config: ParallelConfig, world: World, settings: dict[str, Any]) -> None:
    """Give a model on the meta device memory: at stage 3 no more than a layer of it at once."""
    assert config.zero is not None, "chosen by the config"
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    model.to(dtype)
    if config.zero.stage < 3:
        model.to_empty(device=world.device)
        return
    for module in _units(model):
        module.to_empty(device=world.device)
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=dtype)


def _units(model: Llama) -> Iterator[nn.Module]:
    """Yield modules that together hold each parameter once."""
    rest = (model.model.embed_tokens, model.model.norm, model.lm_head)
    return chain(model.layers.values(), (module for module in rest if module is not None))
