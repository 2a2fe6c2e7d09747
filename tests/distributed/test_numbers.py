"""Numbers that are not finite, and updates that are left out: FSDP2 and every stage of ZeRO."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.config import FsdpConfig, ParallelConfig, ZeroConfig
from parallel.engine import Engine
from parallel.world import World, start
from tests.distributed.recipe import (
    MICROBATCHES,
    OPTIM,
    engine_steps,
    make_engine,
    microbatch,
    model_config,
    plan_and_weights,
    whole,
)
from tests.ranks import run_ranks
from trainer.step import Judge, StepResult, train_step

pytestmark = pytest.mark.ranks

ENGINES = {
    "fsdp": ParallelConfig(),
    "fsdp recomputing": ParallelConfig(recompute=True),
    "zero-1": ParallelConfig(zero=ZeroConfig(stage=1)),
    "zero-2": ParallelConfig(zero=ZeroConfig(stage=2)),
    "zero-2 offloaded": ParallelConfig(zero=ZeroConfig(stage=2, offload_optimizer=True)),
    "zero-3": ParallelConfig(zero=ZeroConfig(stage=3)),
    "zero-3 offloaded": ParallelConfig(zero=ZeroConfig(stage=3, offload_optimizer=True)),
    "hybrid": ParallelConfig(fsdp=FsdpConfig(shard_size=2)),
}
SPOILT = 2
"""The step that something happens to."""


def engine_on(world: World, parallel: ParallelConfig) -> Engine:
    dtype = torch.float64 if parallel.zero is None else torch.float32
    return make_engine(model_config(), parallel, world, dtype)


def one_step(engine: Engine, world: World, step: int, judge: Judge | None) -> StepResult:
    mine = range(world.rank, MICROBATCHES, world.size)
    drawn = [plan_and_weights(step, g, 5) for g in mine]
    return train_step(
        engine,
        [microbatch(step, g) for g in mine],
        [plan for plan, _ in drawn],
        drawn[0][1],
        step=step,
        learning_rate=OPTIM.lr,
        clip_norm=OPTIM.clip_norm,
        chunk_tokens=1000,
        device=world.device,
        judge=judge,
    )


def state_of(engine: Engine) -> dict[str, Tensor]:
    state = {**engine.weights(), **engine.optimizer_state()}
    return {name: whole(tensor).clone() for name, tensor in state.items()}


def spoil(engine: Engine, world: World, what: str) -> Callable[[], object]:
    """Plant a fault on the last rank; return what takes it away again."""
    if world.rank != world.size - 1:
        return lambda: None
    layer = engine.model.layers["0"]

    def broken(module: nn.Module, arguments: Any, out: Tensor) -> Tensor | None:
        if what == "output":
            return out * float("inf")
        out.register_hook(lambda gradient: gradient * float("inf"))
        return None

    return layer.register_forward_hook(broken).remove


def place(name: str, what: str) -> str:
    """Return what is the first to go wrong: DeepSpeed wraps outputs at stage 3, past our hook."""
    if what == "gradient":
        return "the gradient of the " + ("embeddings" if "-3" in name else "output of layer 0")
    return "the output of layer 0"


def _left_out(name: str, what: str) -> dict[str, Tensor]:
    world = start(device="cpu")
    engine = engine_on(world, ENGINES[name])
    reasons = []
    for step in range(5):
        repair = spoil(engine, world, what) if step == SPOILT else lambda: None

        def judge(losses: dict[int, float], norm: float, step: int = step) -> str | None:
            return "too high" if step == SPOILT and what == "judged" else None

        reasons.append(one_step(engine, world, step, judge).left_out)
        repair()
    assert [reason is not None for reason in reasons] == [step == SPOILT for step in range(5)]
    if what != "judged":
        assert f"first seen in {place(name, what)}, in microbatch " in str(reasons[SPOILT])
        assert f", which rank {world.size - 1} has" in str(reasons[SPOILT])
    return state_of(engine)


def _without_that_step(name: str) -> dict[str, Tensor]:
    world = start(device="cpu")
    engine = engine_on(world, ENGINES[name])
    engine_steps(engine, world, steps=[step for step in range(5) if step != SPOILT])
    return state_of(engine)


@pytest.mark.parametrize("what", ["output", "gradient", "judged"])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "hybrid"])
def test_a_run_that_leaves_an_update_out_equals_one_without_that_step(name: str, what: str) -> None:
    found = run_ranks(_left_out, name, what)[0]
    expected = run_ranks(_without_that_step, name)[0]
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_one_rank_and_four_in_shard_groups_leave_out_alike() -> None:
    for world, name in ((1, "fsdp"), (1, "zero-3"), (4, "hybrid")):
        found = run_ranks(_left_out, name, "gradient", world=world)[0]
        expected = run_ranks(_without_that_step, name, world=world)[0]
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def _stopped(name: str, what: str) -> str:
    world = start(device="cpu")
    engine = engine_on(world, ENGINES[name])
    weights = engine.weights()
    if what == "weight":
        shard = weights["model.layers.3.mlp.up_proj.weight"]
        part = shard.to_local() if hasattr(shard, "to_local") else shard
        if world.rank == 1 and part.numel():
            part.view(-1)[0] = float("nan")
    else:
        spoil(engine, world, what)
    before = state_of(engine)
    with pytest.raises(RuntimeError) as error:
        one_step(engine, world, 7, None)
    after = state_of(engine)
    assert all(torch.equal(after[k].nan_to_num(), v.nan_to_num()) for k, v in before.items())
    return str(error.value)


@pytest.mark.parametrize("name", ["fsdp", "zero-1", "zero-2", "zero-3"])
def test_all_ranks_stop_with_one_message_that_says_where(name: str) -> None:
    first, second = run_ranks(_stopped, name, "gradient")
    assert first == second
    assert first.startswith("step 7: the gradient norm is nan although every loss is finite, first")
    assert f"first seen in {place(name, 'gradient')}, in microbatch " in first
    assert "parameters are not finite, up to that of model.layers.0." in first
    assert "stopped before the update" in first


@pytest.mark.parametrize("name", ["fsdp", "zero-3"])
def test_a_weight_that_was_not_finite_before_is_named(name: str) -> None:
    first, second = run_ranks(_stopped, name, "weight")
    assert first == second
    assert "1 weights are not finite before the step" in first
    assert "the first model.layers.3.mlp.up_proj.weight, on rank 1" in first
