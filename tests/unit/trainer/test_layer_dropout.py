from collections import Counter
from itertools import combinations, product
from math import prod
from typing import Any

import pytest

from models.plan import LayerPlan, Rows, full
from trainer.layer_dropout import (
    depth_scale,
    drop_probabilities,
    plan_step,
    survivor_counts,
)
from trainer.recipe_config import LayerDropoutConfig

UNIFORM_30 = LayerDropoutConfig(max_prob=0.3, curve="uniform")


def plan(config: LayerDropoutConfig | None, **changes: Any) -> LayerPlan:
    arguments: dict[str, Any] = {
        "num_layers": 2,
        "step": 0,
        "total_steps": 100,
        "seed": 0,
        "microbatch": 0,
        "rows": 4,
    }
    return plan_step(config, **(arguments | changes))


def survivors(made: LayerPlan, *, num_layers: int, rows: int) -> list[tuple[int, ...]]:
    """Return the rows that run each layer."""
    ran: list[tuple[int, ...]] = [()] * num_layers
    for visit in made.visits:
        gate = visit.gate
        ran[visit.layer] = (
            tuple(gate.rows.tolist()) if isinstance(gate, Rows) else tuple(range(rows))
        )
    return ran


def chi_square(observed: Counter[Any], expected: dict[Any, float]) -> float:
    assert set(observed) <= set(expected)
    return sum((observed[key] - mean) ** 2 / mean for key, mean in expected.items())


def test_the_exponential_depth_curve_follows_the_paper() -> None:
    depth = [depth_scale("exp", layer, 32) for layer in range(32)]
    assert (depth[0], depth[31]) == (0.0, 1.0)
    assert sum(depth) / 32 == pytest.approx(0.44454, abs=5e-6)


def test_the_other_depth_curves_end_at_one() -> None:
    assert [depth_scale("linear", layer, 5) for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [depth_scale("uniform", layer, 5) for layer in range(5)] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(("num_layers", "mean"), [(32, 0.0889), (24, 0.0890)])
def test_the_mean_drop_probability_is_that_of_the_paper(num_layers: int, mean: float) -> None:
    probabilities = drop_probabilities(LayerDropoutConfig(max_prob=0.2), num_layers, 7, 100)
    assert probabilities[-1] == pytest.approx(0.2)
    assert sum(probabilities) / num_layers == pytest.approx(mean, abs=5e-5)


def test_over_time_the_drop_probability_grows_from_zero_to_its_peak() -> None:
    config = LayerDropoutConfig(max_prob=0.2, over_time="exp")
    assert drop_probabilities(config, 4, 0, 101) == [0.0] * 4
    assert drop_probabilities(config, 4, 50, 101)[-1] == pytest.approx(0.2 * (2**0.5 - 1))
    assert drop_probabilities(config, 4, 100, 101)[-1] == pytest.approx(0.2)


def test_without_a_section_nothing_is_dropped() -> None:
    assert drop_probabilities(None, 3, 0, 10) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("config", [None, LayerDropoutConfig(max_prob=0.0)])
@pytest.mark.parametrize("exits", [(), (1, 2)])
def test_no_dropout_is_exactly_the_full_plan(
    config: LayerDropoutConfig | None, exits: tuple[int, ...]
) -> None:
    for step in range(20):
        assert plan(config, step=step, exits=exits) == full(2, exits=exits)


def test_the_first_layer_is_never_dropped_by_the_papers_curve() -> None:
    config = LayerDropoutConfig(max_prob=0.9)
    assert all(plan(config, step=step).visits[0].gate is None for step in range(100))


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("microbatch", [0, 5])
def test_within_a_microbatch_rows_drop_independently(rows: int, microbatch: int) -> None:
    steps = 4000
    observed: Counter[tuple[int, ...]] = Counter()
    for step in range(steps):
        made = plan(UNIFORM_30, step=step, rows=rows, microbatch=microbatch)
        observed[survivors(made, num_layers=2, rows=rows)[1]] += 1
    expected = {
        tuple(row for row in range(rows) if runs[row]): steps
        * prod(0.7 if one else 0.3 for one in runs)
        for runs in product([False, True], repeat=rows)
    }
    assert len(expected) == 2**rows
    assert chi_square(observed, expected) < {3: 24.3, 4: 37.7}[rows]  # 1 in 1000, 2^B - 1 degrees


def test_layers_drop_independently_of_each_other() -> None:
    steps, rows = 4000, 2
    observed: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for step in range(steps):
        made = plan(UNIFORM_30, step=step, rows=rows)
        observed[tuple(survivors(made, num_layers=2, rows=rows))] += 1
    one = {(): 0.09, (0,): 0.21, (1,): 0.21, (0, 1): 0.49}
    expected = {(a, b): steps * one[a] * one[b] for a in one for b in one}
    assert chi_square(observed, expected) < 37.7  # 1 in 1000, 15 degrees of freedom


def test_microbatches_choose_their_rows_independently_given_the_shared_count() -> None:
    observed: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for step in range(6000):
        first, second = (
            survivors(plan(UNIFORM_30, step=step, microbatch=g), num_layers=2, rows=4)[1]
            for g in (0, 1)
        )
        assert len(first) == len(second)
        if len(first) == 2:
            observed[first, second] += 1
    pairs = list(product(combinations(range(4), 2), repeat=2))
    mean = observed.total() / len(pairs)
    assert mean > 30
    assert chi_square(observed, dict.fromkeys(pairs, mean)) < 66.6  # 1 in 1000, 35 degrees


def test_different_seeds_drop_different_rows() -> None:
    drawn = {
        tuple(
            survivors(plan(UNIFORM_30, seed=seed, step=step), num_layers=2, rows=4)[1]
            for step in range(20)
        )
        for seed in range(10)
    }
    assert len(drawn) == 10


def test_counts_are_those_of_the_plan_of_every_microbatch() -> None:
    for step in range(20):
        counts = survivor_counts(
            UNIFORM_30, num_layers=6, step=step, total_steps=100, seed=3, rows=5
        )
        for microbatch in range(3):
            made = plan(UNIFORM_30, num_layers=6, step=step, seed=3, rows=5, microbatch=microbatch)
            ran = survivors(made, num_layers=6, rows=5)
            assert [len(rows) for rows in ran] == counts


def test_rows_are_sorted_and_a_layer_that_no_row_survives_in_is_not_visited() -> None:
    config = LayerDropoutConfig(max_prob=0.8, curve="uniform")
    kinds = set()
    for step in range(100):
        made = plan(config, step=step, rows=3)
        for layer, rows in enumerate(survivors(made, num_layers=2, rows=3)):
            visit = next((v for v in made.visits if v.layer == layer), None)
            assert list(rows) == sorted(set(rows))
            assert (visit is None) == (not rows)
            assert visit is None or (visit.gate is None) == (len(rows) == 3)
            kinds.add(len(rows))
    assert kinds == {0, 1, 2, 3}


def test_granularity_batch_drops_all_rows_or_none() -> None:
    config = LayerDropoutConfig(max_prob=0.3, curve="uniform", granularity="batch")
    steps = 2000
    dropped = 0
    for step in range(steps):
        made = plan(config, step=step, rows=8)
        assert all(visit.gate is None for visit in made.visits)
        dropped += 2 - len(made.visits)
    assert dropped / (2 * steps) == pytest.approx(0.3, abs=0.03)


def test_layers_above_the_last_exit_are_not_visited() -> None:
    made = plan(None, num_layers=5, exits=(1, 3))
    assert [visit.layer for visit in made.visits] == [0, 1, 2]
    assert made.exits == (1, 3)
