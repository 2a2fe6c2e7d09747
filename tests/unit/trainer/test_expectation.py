import math
from dataclasses import replace
from statistics import mean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from configs.load import load
from models.flops import (
    flops_of_plan,
    head_flops,
    layer_flops,
    recomputed_layer_flops,
)
from models.plan import LayerPlan, Rows
from parallel.config import ParallelConfig
from parallel.world import start, stop
from tests.distributed.recipe import LENGTH, ROWS, make_engine, microbatch
from tests.e2e.runs import write_config
from tests.tiny import tiny_config
from trainer.config import PretrainConfig
from trainer.exit_weights import exit_weights
from trainer.expectation import (
    expected_around,
    expected_run,
    expected_step,
    visit_probabilities,
)
from trainer.layer_dropout import plan_step
from trainer.recipe_config import LayerDropoutConfig
from trainer.step import train_step

FORMULAS = flop_registry | {torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}


class FlopCounter(TorchDispatchMode):
    """Applies torch's formulas; `FlopCounterMode` does not work with `torch.autograd.grad`.

    Products with a vector are left out: they sum the gradient of a norm's weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if any(1 in t.shape for t in args if isinstance(t, Tensor)):
            formula = None
        self.total += 0 if formula is None else formula(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.fixture
def config(tmp_path: Any) -> PretrainConfig:
    return load(PretrainConfig, write_config(tmp_path), [])


def changed(tmp_path: Any, *changes: str) -> PretrainConfig:
    return load(PretrainConfig, write_config(tmp_path), list(changes))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_whole_training_step_executes_the_predicted_flops(recompute: bool) -> None:
    shape = tiny_config(num_hidden_layers=5)
    world = start(device="cpu")
    engine = make_engine(shape, ParallelConfig(recompute=recompute), world, torch.float32)
    weights = {2: 0.25, 4: 0.25, 5: 0.5}
    dropout = LayerDropoutConfig(max_prob=0.8)
    plans = [
        plan_step(
            dropout,
            num_layers=5,
            step=1,
            total_steps=4,
            seed=7,
            microbatch=g,
            rows=ROWS,
            exits=tuple(weights),
        )
        for g in range(2)
    ]
    counter = FlopCounter()
    # torch counts the plain products of this backend, and not the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), counter:
        train_step(
            engine,
            [microbatch(1, g) for g in range(2)],
            plans,
            weights,
            step=1,
            learning_rate=1e-3,
            clip_norm=1.0,
            chunk_tokens=LENGTH,
            device=world.device,
        )
    stop()
    rows_run = [rows_of(v) for plan in plans for v in plan.visits]
    assert min(rows_run) < ROWS, "the plans drop nothing"
    again = sum(recomputed_layer_flops(shape, rows, LENGTH) for rows in rows_run)
    planned = sum(flops(plan, shape) for plan in plans)
    assert counter.total == planned + (again if recompute else 0)


def rows_of(visit: Any) -> int:
    return visit.gate.rows.numel() if isinstance(visit.gate, Rows) else ROWS


def flops(plan: LayerPlan, shape: Any) -> float:
    return flops_of_plan(
        plan,
        shape,
        rows=ROWS,
        seq_len=LENGTH,
        num_exits_unembedded=len(plan.exits),
        backward=True,
    )


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_planned_steps_cost_on_average_what_is_expected(tmp_path: Any, granularity: str) -> None:
    config = changed(tmp_path, f"layer_dropout.granularity={granularity}")
    shape, step, draws = config.model, 5, 2000
    assert shape is not None
    num_layers, micro = shape.num_hidden_layers, config.batch.micro_size
    exits = tuple(exit_weights(config.exit_loss, num_layers, step, config.steps))
    found, visits = [], []
    for seed in range(draws):
        plan = plan_step(
            config.layer_dropout,
            num_layers=num_layers,
            step=step,
            total_steps=config.steps,
            seed=seed,
            microbatch=0,
            rows=micro,
            exits=exits,
        )
        of_one = flops_of_plan(
            plan,
            shape,
            rows=micro,
            seq_len=config.data.seq_len,
            num_exits_unembedded=len(exits),
            backward=True,
        )
        found.append(of_one * config.batch.num_microbatches)
        visits.append(float(len(plan.visits)))
    expected = expected_step(config, shape, step)
    for values, value in ((found, expected.flops), (visits, expected.visits)):
        assert abs(mean(values) - value) < 4 * pstdev(values) / math.sqrt(draws)
    assert pstdev(visits) > 0


def test_a_layer_is_left_out_when_every_row_or_the_one_coin_drops_it() -> None:
    by_sample, by_batch = (
        LayerDropoutConfig(max_prob=0.5, granularity=granularity)
        for granularity in ("sample", "batch")
    )
    assert visit_probabilities(by_sample, [0.0, 0.5], 3) == [1.0, 0.875]
    assert visit_probabilities(by_batch, [0.0, 0.5], 3) == [1.0, 0.5]
    assert visit_probabilities(None, [0.0], 3) == [1.0]


def test_without_the_recipe_nothing_is_saved(tmp_path: Any) -> None:
    config = changed(tmp_path, "layer_dropout=null", "exit_loss=null", "parallel.recompute=true")
    shape, rows, length = config.model, config.batch.global_size, config.data.seq_len
    assert shape is not None
    cost = expected_step(config, shape, 0)
    layers = shape.num_hidden_layers * layer_flops(shape, rows, length)
    assert cost.flops == cost.full_flops == 3 * (layers + head_flops(shape, rows, length))
    assert cost.saved == 0
    assert cost.visits == shape.num_hidden_layers
    assert 0 < cost.recomputed < layers


def test_layers_above_the_only_exit_cost_nothing(tmp_path: Any) -> None:
    config = changed(tmp_path, "layer_dropout=null", "exit_loss.include_last=false")
    shape = config.model
    assert shape is not None
    for step in range(4):
        highest = max(exit_weights(config.exit_loss, 4, step, config.steps))
        assert expected_step(config, shape, step).visits == highest


def test_a_moment_is_the_mean_of_its_rotation_and_the_run_the_sum(config: PretrainConfig) -> None:
    shape = config.model
    assert shape is not None
    steps = [expected_step(config, shape, step) for step in range(config.steps)]
    around = expected_around(config, shape, 4)
    assert around.exits == mean(cost.exits for cost in steps[4:6])
    assert expected_around(config, shape, config.steps - 1).flops == pytest.approx(
        mean(cost.flops for cost in steps[-2:])
    )
    assert expected_run(config, shape).flops == pytest.approx(sum(cost.flops for cost in steps))


@pytest.mark.parametrize("curriculum", ["rotational", "all", "gradual"])
def test_a_long_run_is_summed_from_moments(tmp_path: Any, curriculum: str) -> None:
    rotation = "3" if curriculum == "rotational" else "null"
    recipe = (f"exit_loss.curriculum={curriculum}", f"exit_loss.rotation={rotation}")
    config = changed(tmp_path, "steps=7001", "layer_dropout.over_time=exp", *recipe)
    shape = config.model
    assert shape is not None
    total = expected_run(config, shape)
    steps = [expected_step(config, shape, step) for step in range(config.steps)]
    assert total.flops == pytest.approx(sum(cost.flops for cost in steps), rel=1e-3)
    assert total.exits == pytest.approx(sum(cost.exits for cost in steps), rel=1e-3)
    endless = replace(config, steps=10**9)
    assert expected_run(endless, shape).flops == pytest.approx(total.flops / 7001 * 1e9, rel=1e-2)
