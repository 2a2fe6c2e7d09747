"""ZeRO against a plain loop: skipped layers, exits, accumulation, clipping, AdamW."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from models.plan import dropped, full
from models.tokens import make_tokens
from parallel import zero_stages
from parallel.config import ParallelConfig, Stage, ZeroConfig
from parallel.world import start
from parallel.zero_config import check_user_config
from tests.distributed.recipe import (
    LENGTH,
    OPTIM,
    assert_same,
    engine_steps,
    make_engine,
    microbatch,
    model_config,
    trained_by_engine,
    trained_plainly,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

FLOAT32 = 1e-6
"""What float32 allows, which is all that DeepSpeed does."""
STEADY = replace(OPTIM, eps=1e-3)
"""With the usual 1e-8, Adam turns a gradient of 1e-9 in float32 into a step of full length."""
STAGES = (1, 2, 3)


def zero(stage: int, *, offload: bool = False, **changes: object) -> ParallelConfig:
    return ParallelConfig(zero=ZeroConfig(stage=stage, offload_optimizer=offload), **changes)


def _trained(
    parallel: ParallelConfig, tied: bool = False, chunk: int = 10_000
) -> dict[str, Tensor]:
    return trained_by_engine(parallel, tied, chunk, torch.float32, STEADY)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_what_a_plain_loop_trains(stage: int, tied: bool, world: int) -> None:
    found = run_ranks(_trained, zero(stage), tied, world=world)
    for of_rank in found:
        assert_same(of_rank, trained_plainly(tied, optim=STEADY), FLOAT32)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", STAGES)
def test_recomputing_activations_trains_the_same(stage: int, world: int) -> None:
    found = run_ranks(_trained, zero(stage, recompute=True), world=world)
    assert_same(found[0], trained_plainly(optim=STEADY), FLOAT32)


@pytest.mark.parametrize("stage", STAGES)
def test_small_chunks_of_logits_train_the_same(stage: int) -> None:
    found = run_ranks(_trained, zero(stage), False, 7, world=2)
    assert_same(found[0], trained_plainly(optim=STEADY), FLOAT32)


@pytest.mark.parametrize("stage", STAGES)
def test_offloading_the_optimizer_trains_the_same(stage: int) -> None:
    found = run_ranks(_trained, zero(stage, offload=True), world=2)
    assert_same(found[0], trained_plainly(optim=STEADY), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_compiled_layers_train_the_same(stage: int) -> None:
    found = run_ranks(_trained, zero(stage, compile=True), world=2, timeout=300)
    assert_same(found[0], trained_plainly(optim=STEADY), FLOAT32)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (1, {"reduce_bucket_size": 10_000, "allgather_bucket_size": 5_000}),
        (2, {"overlap_comm": True, "reduce_scatter": False}),
        (2, {"contiguous_gradients": False}),
        (3, {"reduce_bucket_size": 10_000, "sub_group_size": 5_000, "overlap_comm": True}),
        (3, {"stage3_prefetch_bucket_size": 50_000, "stage3_param_persistence_threshold": 5_000}),
        (3, {"stage3_max_reuse_distance": 1e9, "stage3_max_live_parameters": 1e9}),
    ],
)
def test_settings_of_speed_do_not_change_numbers(
    tmp_path: Path, stage: Stage, settings: dict[str, Any]
) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": settings}))
    config = ParallelConfig(zero=ZeroConfig(stage=stage, deepspeed_config=str(path)))
    check_user_config(config, {})
    found = run_ranks(_trained, config, world=2)
    assert_same(found[0], trained_plainly(optim=STEADY), FLOAT32)


def _update(clip_norm: float | None) -> Tensor:
    """On a rank: the first step of a parameter whose gradient is long."""
    world = start(device="cpu")
    engine = make_engine(model_config(), zero(1), world, torch.float32, STEADY)
    before = engine.weights()["model.norm.weight"].to_local().clone()
    tokens = make_tokens(engine.model.config, torch.arange(LENGTH)[None])
    hidden = engine.forward(microbatch(0, 0).ids, tokens, full(5))[5]
    engine.add_gradient(engine.model.model.norm.weight, torch.full((64,), 0.01))
    engine.backward([hidden], [torch.ones_like(hidden)])
    assert engine.grad_norm(clip_norm) > 100
    engine.step(0.01)
    return engine.weights()["model.norm.weight"].to_local() - before


def test_without_a_limit_nothing_is_clipped_though_deepspeed_clips_by_default() -> None:
    expected = torch.full((64,), -0.01 * 0.01 / (0.01 + STEADY.eps))
    torch.testing.assert_close(run_ranks(_update, None, world=1)[0], expected)
    assert run_ranks(_update, 1.0, world=1)[0].abs().max() < 0.1 * expected.abs().max()


def _gathers(live: list[int], recompute: bool) -> Tensor:
    """On a rank: gathers and reductions of one forward and backward through some layers."""
    world = start(device="cpu")
    config = model_config()
    engine = make_engine(config, zero(3, recompute=recompute), world, torch.float32)
    survivors = [None if i in live else torch.tensor([], dtype=torch.long) for i in range(5)]
    ids, tokens = microbatch(0, 0).ids, make_tokens(config, torch.arange(LENGTH)[None])
    engine.forward(ids, tokens, full(5))  # what is done once is done when counting starts
    engine.release()
    with CommDebugMode() as comm:
        h = engine.forward(ids, tokens, dropped(survivors))[5]
        engine.backward([h], [torch.ones_like(h)])
    counts = {str(op): n for op, n in comm.get_comm_counts().items()}
    gathers = sum(n for op, n in counts.items() if "gather" in op)
    reductions = sum(n for op, n in counts.items() if "reduce" in op)
    return torch.tensor([gathers, reductions])


@pytest.mark.parametrize("recompute", [pytest.param(False, marks=pytest.mark.slow), True])
def test_stage_3_gathers_the_layers_that_are_visited_and_no_other(recompute: bool) -> None:
    found = {n: run_ranks(_gathers, list(range(n)), recompute)[0].tolist() for n in (0, 1, 2, 5)}
    assert [found[n][0] - found[0][0] for n in (1, 2, 5)] == [2, 4, 10]


def _without_forgetting(stage: int, offload: bool) -> dict[str, Tensor]:
    for kind in (zero_stages._SumOfRanks, zero_stages._Stage3):
        kind.forget = lambda self: None  # type: ignore[method-assign]
    return _trained(zero(stage, offload=offload))


@pytest.mark.parametrize(("stage", "offload"), [(3, False), (1, True), (2, True)])
def test_deepspeed_alone_would_reuse_the_last_gradient_of_a_skipped_layer(
    stage: int, offload: bool
) -> None:
    found = run_ranks(_without_forgetting, stage, offload, world=2)[0]
    with pytest.raises(AssertionError, match="differs"):
        assert_same(found, trained_plainly(optim=STEADY), 1000 * FLOAT32)


@pytest.mark.parametrize("offload", [pytest.param(False, marks=pytest.mark.slow), True])
def test_all_stages_train_the_same_bits_in_bfloat16_and_fsdp_all_but(offload: bool) -> None:
    half = "bfloat16"
    configs = [zero(stage, offload=offload, precision=half) for stage in STAGES]
    first, *others = (run_ranks(_trained, config, world=2)[0] for config in configs)
    for other in others:
        assert_same(other, first, 0.0)
    assert_same(run_ranks(_trained, ParallelConfig(precision=half), world=2)[0], first, 2e-7)


def _mixed_precision(stage: int) -> dict[str, Tensor]:
    world = start(device="cpu")
    parallel = zero(stage, precision="bfloat16")
    engine = make_engine(model_config(), parallel, world, torch.float32)
    losses = engine_steps(engine, world)
    kinds = {str(p.dtype) for p in engine.weights().values()}
    return {
        "losses": torch.tensor(losses),
        "masters_are_float32": torch.tensor(kinds == {"torch.float32"}),
        "computes_in_bfloat16": torch.tensor(
            {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
        ),
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_keeps_float32_masters_and_follows_the_float64_curve(
    stage: int, world: int
) -> None:
    found = run_ranks(_mixed_precision, stage, world=world)[0]
    assert found["masters_are_float32"]
    assert found["computes_in_bfloat16"]
    torch.testing.assert_close(
        found["losses"].double(), trained_plainly()["losses"].double(), rtol=0.02, atol=0
    )
