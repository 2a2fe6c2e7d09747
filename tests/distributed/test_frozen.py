"""Models of which a part is frozen, under every engine, against a plain loop."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.llama import Llama
from models.lora import LoraConfig, is_adapter
from models.plan import dropped, full
from parallel.config import ParallelConfig, Stage, ZeroConfig
from parallel.world import start
from tests.distributed.recipe import (
    OPTIM,
    assert_same,
    engine_steps,
    make_engine,
    microbatch,
    model_config,
    trained_by_engine,
    trained_plainly,
    whole,
)
from tests.ranks import run_ranks
from trainer.optim import GroupConfig, OptimConfig
from trainer.step import train_step
from trainer.trained import FreezeConfig, choose_trained

pytestmark = pytest.mark.ranks

LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))
FREEZE = {
    "layers below 2 learn": FreezeConfig(layers_from=2),
    "norm and head learn": FreezeConfig(all_but=("model.norm.*", "lm_head.*", "*embed_tokens*")),
    "only norm and head learn": FreezeConfig(all_but=("model.norm.*", "lm_head.*")),
    "layer 2 learns": FreezeConfig(all_but=("model.layers.2.*",)),
}
PREPARE: dict[str, Callable[[Llama], None]] = {
    "lora": partial(choose_trained, lora=LORA, freeze=None)
} | {name: partial(choose_trained, lora=None, freeze=freeze) for name, freeze in FREEZE.items()}
STEADY = replace(OPTIM, eps=1e-3)
"""With the usual 1e-8, Adam turns a gradient of 1e-9 in float32 into a step of full length."""
GROUPS = replace(
    STEADY,
    layer_decay=0.7,
    groups={
        "b": GroupConfig(match="*.lora_B.weight", lr_scale=4.0, weight_decay=0.0),
        "low": GroupConfig(match="model.layers.[01].*", lr_scale=0.1),
    },
)


def _trained(
    parallel: ParallelConfig,
    name: str,
    optim: OptimConfig = STEADY,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    return trained_by_engine(parallel, dtype=dtype, optim=optim, prepare=PREPARE[name])


def _same_as_plain(
    parallel: ParallelConfig,
    name: str,
    world: int,
    optim: OptimConfig = STEADY,
    dtype: torch.dtype = torch.float32,
) -> None:
    found = run_ranks(_trained, parallel, name, optim, dtype, world=world)
    expected = trained_plainly(optim=optim, prepare=PREPARE[name])
    for of_rank in found:
        assert_same(of_rank, expected, 1e-6)


@pytest.mark.parametrize("name", PREPARE)
def test_fsdp_trains_what_a_plain_loop_trains(name: str) -> None:
    _same_as_plain(ParallelConfig(), name, 2, OPTIM, torch.float64)


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name != "lora" else []) for name in PREPARE],
)
def test_so_do_any_number_of_ranks(name: str, world: int) -> None:
    _same_as_plain(ParallelConfig(), name, world, OPTIM, torch.float64)


FEW = [(3, "lora"), (3, "only norm and head learn"), (2, "lora")]
"""Of DeepSpeed, which is slow to start, those that run by default."""


@pytest.mark.parametrize(
    ("stage", "name"),
    FEW
    + [
        pytest.param(stage, name, marks=pytest.mark.slow)
        for stage in (1, 2, 3)
        for name in PREPARE
        if (stage, name) not in FEW
    ],
)
def test_zero_trains_what_a_plain_loop_trains(stage: Stage, name: str) -> None:
    _same_as_plain(ParallelConfig(zero=ZeroConfig(stage=stage)), name, 2)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(recompute=True),
        pytest.param(
            ParallelConfig(recompute=True, zero=ZeroConfig(stage=3)), marks=pytest.mark.slow
        ),
        pytest.param(ParallelConfig(zero=ZeroConfig(stage=1)), marks=pytest.mark.slow),
    ],
    ids=["fsdp", "zero-3", "zero-1"],
)
def test_groups_and_recomputation_train_what_a_plain_loop_trains(parallel: ParallelConfig) -> None:
    _same_as_plain(parallel, "lora", 2, GROUPS)


def _unvisited(parallel: ParallelConfig) -> dict[str, Tensor]:
    """Train a step with the only layer that learns, and one without; return what has moved."""
    world = start(device="cpu")
    engine = make_engine(
        model_config(), parallel, world, torch.float32, STEADY, prepare=PREPARE["layer 2 learns"]
    )
    empty = torch.tensor([], dtype=torch.long)
    for step, plan in enumerate((full(5), dropped([None, None, empty, None, None]))):
        train_step(
            engine,
            [microbatch(step, g) for g in range(world.rank, 2, world.size)],
            [plan for _ in range(world.rank, 2, world.size)],
            {5: 1.0},
            step=step,
            learning_rate=0.01,
            clip_norm=0.5,
            chunk_tokens=None,
            device=world.device,
        )
    state = {**engine.weights(), **engine.optimizer_state()}
    return {name: whole(tensor).clone() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("parallel", "world"),
    [
        (ParallelConfig(), 2),
        (ParallelConfig(zero=ZeroConfig(stage=3)), 2),
        pytest.param(ParallelConfig(zero=ZeroConfig(stage=1)), 2, marks=pytest.mark.slow),
        pytest.param(ParallelConfig(zero=ZeroConfig(stage=2)), 2, marks=pytest.mark.slow),
    ],
    ids=["fsdp", "zero-3", "zero-1", "zero-2"],
)
def test_a_step_that_visits_nothing_trained_moves_moments_only(
    parallel: ParallelConfig, world: int
) -> None:
    found = run_ranks(_unvisited, parallel, world=world)
    expected = run_ranks(_unvisited, ParallelConfig(), world=1)[0]
    assert_same(found[0], expected, 1e-6)
    assert all(step == 2 for name, step in expected.items() if name.startswith("step."))


def _half(world_size: int) -> dict[str, Tensor]:
    """In bfloat16 on one rank or two: the losses, and what frozen weights take."""
    parallel, world = ParallelConfig(precision="bfloat16"), start(device="cpu")
    engine = make_engine(
        model_config(), parallel, world, torch.float32, STEADY, prepare=PREPARE["lora"]
    )
    losses = engine_steps(engine, world)
    frozen = {n: p for n, p in engine.model.named_parameters() if not is_adapter(n)}
    assert all(p.grad is None for p in frozen.values())
    if world_size == 1:
        assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    assert {t.dtype for t in engine.weights().values()} == {torch.float32}
    return {"losses": torch.tensor(losses)}


def test_bfloat16_on_one_rank_and_two_is_close() -> None:
    one, two = (run_ranks(_half, size, world=size)[0]["losses"] for size in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=2e-2)


def _reduced() -> dict[str, Tensor]:
    """On a rank of two: train a step; count what is reduced and what the optimizer knows."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world, prepare=PREPARE["lora"])
    sizes: list[int] = []
    reduce = dist.reduce_scatter_single

    def counting(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs.get("input", args[1] if len(args) > 1 else None).numel())
        return reduce(*args, **kwargs)

    dist.reduce_scatter_single = counting
    engine_steps(engine, world, steps=[0])
    adapters = {n: p for n, p in engine.model.named_parameters() if is_adapter(n)}
    assert engine.weights().keys() == adapters.keys()
    kinds = ("step", "exp_avg", "exp_avg_sq")
    assert engine.optimizer_state().keys() == {f"{k}.{n}" for n in adapters for k in kinds}
    assert all(p.grad is None for p in engine.model.parameters())
    layer = sum(p.numel() for p in adapters.values()) // 5
    return {"most": torch.tensor(max(sizes)), "layer": torch.tensor(layer)}


def test_only_adapters_are_reduced_and_have_optimizer_state() -> None:
    found = run_ranks(_reduced)[0]
    assert found["most"] == found["layer"]
