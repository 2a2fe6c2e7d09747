"""Predicted communication and state against what real ranks move and hold."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.config import LlamaConfig
from parallel.config import FsdpConfig, ParallelConfig, ZeroConfig
from parallel.cost import Amount, Operation, step_traffic
from parallel.flat_shard import FlatShard
from parallel.memory import gradient_bytes, shard_parameters, state_bytes
from parallel.world import start
from tests.distributed.recipe import (
    MICROBATCHES,
    engine_steps,
    make_engine,
    model_config,
    plan_and_weights,
)
from tests.ranks import run_ranks
from trainer.check import sharding_of

pytestmark = pytest.mark.ranks

STEP = 1
OPERATIONS: dict[str, Operation] = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
}
CASES = {
    "full sharding": (2, ParallelConfig()),
    "four ranks": (4, ParallelConfig(precision="bfloat16")),
    "bfloat16, layers stay gathered": (
        2,
        ParallelConfig(precision="bfloat16", fsdp=FsdpConfig(reshard_after_forward=False)),
    ),
    "hybrid": (4, ParallelConfig(precision="bfloat16", fsdp=FsdpConfig(shard_size=2))),
    "hybrid, layers stay gathered": (
        4,
        ParallelConfig(fsdp=FsdpConfig(shard_size=2, reshard_after_forward=False)),
    ),
    "recomputed": (2, ParallelConfig(recompute=True)),
    "copies only": (2, ParallelConfig(fsdp=FsdpConfig(shard_size=1))),
}


class Traffic(TorchDispatchMode):
    """Adds up the sizes of the tensors that collectives are given, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Operation] = Counter()
        self.sizes: Counter[Operation] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            size = max((t.nbytes for t in tree_leaves(args) if isinstance(t, Tensor)), default=0)
            if name in OPERATIONS and size > 1000:  # not the sums of losses and norms
                self.count[OPERATIONS[name]] += 1
                self.sizes[OPERATIONS[name]] += size
        return func(*args, **(kwargs or {}))


def uneven_config() -> LlamaConfig:
    """Widths that no number of ranks divides, so that shards are padded."""
    return model_config(intermediate_size=131, vocab_size=97)


def _moved(parallel: ParallelConfig) -> dict[str, float]:
    """On a rank: one real step under layer dropout; what the collectives were given."""
    world = start(device="cpu")
    engine = make_engine(uneven_config(), parallel, world, dtype=torch.float32)
    engine_steps(engine, world, [0])
    with Traffic() as traffic:
        engine_steps(engine, world, [STEP])
    counts = {f"count {op}": float(n) for op, n in traffic.count.items()}
    return counts | {f"size {op}": float(n) for op, n in traffic.sizes.items()}


@pytest.mark.parametrize(("world", "parallel"), CASES.values(), ids=CASES.keys())
def test_a_step_moves_what_was_predicted(world: int, parallel: ParallelConfig) -> None:
    config, sharding = uneven_config(), sharding_of(parallel, world)
    plan, _ = plan_and_weights(STEP, 0, config.num_hidden_layers)
    live = {v.layer for v in plan.visits}
    assert len(live) < config.num_hidden_layers, "the plan drops nothing: no test of it"
    expected = step_traffic(
        config,
        sharding,
        visited=[float(layer in live) for layer in range(config.num_hidden_layers)],
        microbatches=MICROBATCHES // world,
    )
    moved = run_ranks(partial(_moved, parallel), world=world)
    groups = {"all_gather": sharding.shards, "reduce_scatter": sharding.shards}
    for of_rank in moved:
        found = {}
        for operation in OPERATIONS.values():
            ranks = groups.get(operation, sharding.copies)
            rounds = 2 if operation == "all_reduce" else 1
            if ranks > 1 and f"count {operation}" in of_rank:
                sent = rounds * of_rank[f"size {operation}"] * (ranks - 1) / ranks
                found[operation] = Amount(of_rank[f"count {operation}"], sent)
        assert found == expected


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_moves_the_bytes_that_were_predicted(stage: int, precision: str) -> None:
    parallel = ParallelConfig(zero=ZeroConfig(stage=stage), precision=precision)
    config, sharding = uneven_config(), sharding_of(parallel, 2)
    plan, _ = plan_and_weights(STEP, 0, config.num_hidden_layers)
    live = {v.layer for v in plan.visits}
    expected = step_traffic(
        config,
        sharding,
        visited=[float(layer in live) for layer in range(config.num_hidden_layers)],
        microbatches=MICROBATCHES // 2,
    )
    (moved, _) = run_ranks(partial(_moved, parallel), world=2)
    assert {op for op in OPERATIONS.values() if f"count {op}" in moved} == set(expected)
    for operation, amount in expected.items():
        rounds = 2 if operation == "all_reduce" else 1
        # Ends of groups are padded, and weights of 64 numbers are not counted here.
        assert rounds * moved[f"size {operation}"] / 2 == pytest.approx(amount.sent, rel=5e-3)
        assert moved[f"count {operation}"] <= amount.collectives


def _zero_states(parallel: ParallelConfig) -> int:
    """On a rank: bytes of weights, masters and moments after a step, each memory once."""
    world = start(device="cpu")
    engine = make_engine(uneven_config(), parallel, world, dtype=torch.float32)
    engine_steps(engine, world, [0])
    parameters = [getattr(p, "ds_tensor", p) for p in engine.model.parameters()]
    state = engine.optimizer_state().items()
    shards = [*engine.weights().values(), *(t for name, t in state if "step." not in name)]
    local = [t.to_local() for t in shards if isinstance(t, FlatShard)]
    memories = [t.untyped_storage() for t in [*parameters, *local] if t.numel()]
    return sum({memory.data_ptr(): memory.nbytes() for memory in memories}.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_holds_the_states_that_were_predicted(stage: int, precision: str) -> None:
    parallel = ParallelConfig(zero=ZeroConfig(stage=stage), precision=precision)
    held = max(run_ranks(partial(_zero_states, parallel), world=2))
    expected = state_bytes(uneven_config(), sharding_of(parallel, 2))
    assert held == pytest.approx(expected, rel=5e-3)  # FSDP2's padding, DeepSpeed's alignment


def _held(parallel: ParallelConfig) -> int:
    """On a rank: bytes of weights, gradients and moments after a step."""
    world = start(device="cpu")
    engine = make_engine(uneven_config(), parallel, world, dtype=torch.float32)
    engine_steps(engine, world, [0])
    state = engine.optimizer_state()
    moments = [value for name, value in state.items() if not name.startswith("step.")]
    tensors = [*engine.weights().values(), *moments]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    gradients = [t for t in local[: len(engine.weights())]]  # as large as the weights
    return sum(t.nbytes for t in [*local, *gradients])


@pytest.mark.parametrize("parallel", [ParallelConfig(), CASES["hybrid"][1]], ids=["full", "hybrid"])
def test_ranks_hold_the_states_that_were_predicted(parallel: ParallelConfig) -> None:
    config, sharding = uneven_config(), sharding_of(parallel, 4)
    held = run_ranks(partial(_held, parallel), world=4)
    assert max(held) == held[0] == state_bytes(config, sharding) + gradient_bytes(config, sharding)
    whole = 16 * shard_parameters(config, 1)
    assert sum(held) == sharding.copies * whole
