from math import prod

import pytest

from models.flops import layer_parameters, layer_shapes, num_parameters, root_shapes
from parallel.cost import (
    Collective,
    Sharding,
    shard_numbers,
    step_traffic,
    total_traffic,
    unit_collectives,
)
from tests.tiny import tiny_config

CONFIG = tiny_config()  # 4 layers, every first dimension a multiple of 32
ALL = [1.0] * 4


def sent(sharding: Sharding, visited: list[float] = ALL, microbatches: int = 1) -> float:
    traffic = step_traffic(CONFIG, sharding, visited=visited, microbatches=microbatches)
    return total_traffic(traffic).sent


def test_a_gather_and_a_reduction_send_all_but_the_own_part_and_an_all_reduce_twice_that():
    sizes = {op: Collective(op, "shard", 4, 400).sent for op in ("all_gather", "reduce_scatter")}
    assert sizes == {"all_gather": 300, "reduce_scatter": 300}
    assert Collective("all_reduce", "copy", 4, 400).sent == 600
    assert Collective("all_reduce", "copy", 1, 400).sent == 0


def test_a_shard_is_padded_to_the_largest_part():
    assert shard_numbers([(10, 3), (5,)], 4) == 3 * 3 + 2
    assert shard_numbers(layer_shapes(CONFIG), 1) == layer_parameters(CONFIG)


def test_shapes_sum_to_the_parameters():
    total = 4 * sum(map(prod, layer_shapes(CONFIG))) + sum(map(prod, root_shapes(CONFIG)))
    assert total == num_parameters(CONFIG)


@pytest.mark.parametrize(
    ("method", "passes"), [("zero-1", 3), ("zero-2", 3), ("zero-3", 3), ("fsdp", 3)]
)
def test_volumes_are_those_of_the_zero_paper(method, passes):
    # arXiv 1910.02054, section 7: three times the parameters for stage 3; twice for stages 1 and 2,
    # of which DeepSpeed makes three times by an all-reduce where a reduce-scatter would do.
    whole = 2 * num_parameters(CONFIG)
    volume = sent(Sharding(ranks=4, method=method, gather_width=2, reduce_width=2))
    table, *rest = [2 * prod(shape) for shape in root_shapes(CONFIG)]
    once = {"fsdp": table + sum(rest), "zero-3": sum(rest)}  # what is gathered once
    kept = once.get(method, 0)
    assert volume == pytest.approx((passes * whole - kept) * 3 / 4)


def test_one_rank_moves_nothing():
    assert step_traffic(CONFIG, Sharding(ranks=1), visited=ALL, microbatches=3) == {}


def test_copies_all_reduce_one_shard():
    hybrid = Sharding(ranks=8, shard_ranks=2)
    unit = unit_collectives(layer_shapes(CONFIG), hybrid, is_root=False)
    scatter, reduce = unit.reduction
    assert (scatter.group, scatter.ranks, scatter.size) == (
        "shard",
        2,
        4 * layer_parameters(CONFIG),
    )
    assert (reduce.group, reduce.ranks, reduce.size) == ("copy", 4, scatter.size // 2)


def test_a_layer_that_is_not_visited_moves_nothing():
    for sharding in (Sharding(ranks=2), Sharding(ranks=4, shard_ranks=2)):
        one, two, four = (
            step_traffic(CONFIG, sharding, visited=[1.0] * n + [0.0] * (4 - n), microbatches=1)
            for n in (1, 2, 4)
        )
        for op in four:
            per_layer = two[op].collectives - one[op].collectives
            assert four[op].collectives - two[op].collectives == 2 * per_layer
    none = step_traffic(CONFIG, Sharding(ranks=2), visited=[0.0] * 4, microbatches=1)
    assert {op: amount.collectives for op, amount in none.items()} == {
        "all_gather": 1,
        "reduce_scatter": 1,
    }


def test_zero_stages_1_and_2_gather_unvisited_layers_too():
    sharding = Sharding(ranks=2, method="zero-2")
    none = step_traffic(CONFIG, sharding, visited=[0.0] * 4, microbatches=1)
    assert none["all_gather"].sent == 4 * num_parameters(CONFIG) / 2


def test_layers_that_stay_gathered_are_gathered_once():
    with_again, once = (
        step_traffic(
            CONFIG,
            Sharding(ranks=2, reshard_after_forward=reshard),
            visited=ALL,
            microbatches=1,
        )["all_gather"].collectives
        for reshard in (True, False)
    )
    assert (with_again, once) == (9, 5)


def test_reducing_once_a_step_saves_the_reductions_of_all_microbatches_but_one():
    every, once = (
        step_traffic(
            CONFIG,
            Sharding(ranks=2, reduce_every_microbatch=every),
            visited=ALL,
            microbatches=4,
        )
        for every in (True, False)
    )
    assert every["reduce_scatter"].sent == 4 * once["reduce_scatter"].sent
    assert every["all_gather"] == once["all_gather"]
