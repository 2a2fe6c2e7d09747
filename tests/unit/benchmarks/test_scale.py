from dataclasses import replace

import pytest
import torch

from benchmarks.accelerators import CLUSTERS, members_per_node, network_bytes, ring_seconds
from benchmarks.llamas import LLAMAS, PUBLISHED_PARAMETERS
from benchmarks.scale import RECIPES, draws, main, row, table
from benchmarks.scale_check import LAYERS, SIZES, rates_from
from benchmarks.scale_setups import ROWS, Setup, setups
from benchmarks.step_time import Job, Rates, step_flops, step_seconds
from models.flops import head_flops, layer_flops, layer_shapes, num_parameters, root_shapes
from models.llama import Llama
from parallel.cost import Collective, Sharding, unit_collectives
from parallel.memory import shard_parameters
from tests.tiny import tiny_config

CONFIG = tiny_config()
H100 = next(cluster for cluster in CLUSTERS if "H100" in cluster.name)
PAIR = Sharding(ranks=2)
ALL = [2] * 4


def rates(overlap: float, of_collective: float = 1.0) -> Rates:
    """A layer's forward pass takes a second a row, the head and the update nothing."""
    return Rates(
        flops=layer_flops(CONFIG, 1, 8),
        head_flops=float("inf"),
        update=float("inf"),
        collective=lambda one: of_collective if one.ranks > 1 else 0.0,
        overlap=overlap,
    )


def seconds(
    rows_run: list[int], given: Rates, skip: bool = True, sharding: Sharding = PAIR
) -> float:
    job = Job(config=CONFIG, sharding=sharding, rows=2, seq_len=8)
    return step_seconds(job, given, rows_run, skip_collectives=skip)


@pytest.mark.parametrize("name", LLAMAS)
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = Llama(LLAMAS[name])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == num_parameters(LLAMAS[name]) == PUBLISHED_PARAMETERS[name]


def test_a_ring_within_a_node_takes_hops_and_bytes() -> None:
    gather = Collective("all_gather", "shard", 8, 8_000_000_000)
    cluster = replace(H100, start_latency=1.0, node_latency=10.0, memory_bandwidth=float("inf"))
    expected = 1.0 + 7 * 10.0 + 7e9 / (0.5 * cluster.node_bandwidth)
    assert ring_seconds(gather, cluster, Sharding(ranks=8), 0.5) == pytest.approx(expected)


def test_a_ring_of_nodes_goes_through_all_network_cards_of_each() -> None:
    gather, sharding = Collective("all_gather", "shard", 16, 16_000_000_000), Sharding(ranks=16)
    cluster = replace(
        H100, start_latency=0.0, network_latency=5.0, node_latency=0.0, memory_bandwidth=1e30
    )
    cards = 8 * cluster.network_bandwidth
    assert ring_seconds(gather, cluster, sharding, 1.0) == pytest.approx(5.0 + 15e9 / cards)
    assert network_bytes(gather, cluster, sharding) == 15e9 / 8


def test_copies_reduce_each_through_its_own_card() -> None:
    hybrid = Sharding(ranks=32, shard_ranks=8)
    reduce = Collective("all_reduce", "copy", 4, 4000)
    assert members_per_node(reduce, H100, hybrid) == 1
    assert network_bytes(reduce, H100, hybrid) == reduce.sent == 6000
    assert members_per_node(reduce, H100, replace(hybrid, shard_ranks=4)) == 2
    gather = Collective("all_gather", "shard", 8, 4000)
    assert network_bytes(gather, H100, hybrid) == 0


def test_without_overlap_a_step_is_the_sum_of_its_parts() -> None:
    layers, collectives = (
        4 * 2 * 3.0,
        4 * 3 + 2,
    )  # a gather each way and a reduction; root: one each
    assert seconds(ALL, rates(0.0)) == pytest.approx(layers + collectives)


def test_with_overlap_the_longer_of_both_counts_and_the_ends_are_bare() -> None:
    # Bare: the root's gather and reduction, the first gather each way, the last reduction.
    assert seconds(ALL, rates(1.0)) == pytest.approx(24 + 5)
    slow = seconds(ALL, rates(1.0, of_collective=100.0))
    gathers = 100 + 3 * 100 + 2  # the last layer's forward pass has nothing beside it
    backward = 100 + 100 + 100 + 2 * 200 + 100
    assert slow == pytest.approx(gathers + backward + 200)


def test_skipping_collectives_saves_what_a_dropped_layer_would_move() -> None:
    some = [2, 0, 2, 0]
    ours, theirs = (seconds(some, rates(0.0), skip) for skip in (True, False))
    assert theirs - ours == 2 * 3
    assert seconds(ALL, rates(0.0)) - ours == 2 * (6 + 3)
    alone = Sharding(ranks=1)
    assert seconds(some, rates(0.0), False, alone) == seconds(some, rates(0.0), True, alone)


def test_a_row_less_saves_its_computing_only() -> None:
    assert seconds(ALL, rates(0.0)) - seconds([2, 1, 2, 2], rates(0.0)) == pytest.approx(3.0)


def test_the_update_and_the_head_are_added() -> None:
    job = Job(config=CONFIG, sharding=PAIR, rows=2, seq_len=8, exits=3, microbatches=2)
    head = 3 * 2 * 3 * head_flops(CONFIG, 2, 8)
    given = replace(rates(0.0), head_flops=head / 7, update=shard_parameters(CONFIG, 2) / 11)
    assert step_seconds(job, given, ALL) == pytest.approx(2 * (24 + 14) + 7 + 11)
    assert step_flops(job, ALL) == 2 * 3 * 8 * layer_flops(CONFIG, 1, 8) + head


def test_each_setup_is_the_first_that_fits() -> None:
    found = {(s.name, s.sharding.ranks): s for s in setups(H100, ["Llama 2 7B", "Llama 3 70B"])}
    assert not found["FSDP", 8].fits
    assert not found["ZeRO-1", 1024].fits
    hybrid = found["hybrid", 256]
    assert hybrid.fits
    assert hybrid.recompute
    assert hybrid.sharding.shards > 8
    assert ("hybrid", 8) not in found


@pytest.fixture
def setup() -> Setup:
    return next(s for s in setups(H100, ["Llama 3.2 1B"]) if s.sharding.ranks == 64)


def test_volumes_are_the_sum_over_units(setup: Setup) -> None:
    figures = row(setup)
    total = 0.0
    for shapes, times in ((layer_shapes(setup.config), 16), (root_shapes(setup.config), 1)):
        unit = unit_collectives(shapes, setup.sharding, is_root=times == 1)
        total += times * sum(one.sent for group in unit for one in group)
    assert figures["sent_bytes"] == pytest.approx(total)
    assert figures["network_bytes"] == pytest.approx(total / 8)


def test_ours_saves_at_least_what_others_do_and_the_flops_at_most(setup: Setup) -> None:
    figures = row(setup)
    for name in RECIPES:
        ideal = figures[f"{name}_flops_skipped"]
        without = figures[f"{name}_time_saved_without_skipping"]
        assert 0 < without <= figures[f"{name}_time_saved"] <= ideal
    assert setup.model in table([figures])


def test_draws_are_those_of_the_trainer() -> None:
    plans = draws("half", 16, ROWS)
    assert {rows for plan in plans for rows in plan} == {0, ROWS}
    assert len(draws("paper", 16, ROWS)) == len(plans)


def test_rates_come_from_the_parts_that_were_timed() -> None:
    few, many = LAYERS
    times = {f"{few} layers": 1.0, f"{many} layers": 9.0, "head": 2.0, "update": 4.0}
    for size, of_size in zip(SIZES, (1.0, 3.0), strict=True):
        times |= {f"all_gather {size}": of_size, f"copy {size}": 0.5}
    found = rates_from(times, PAIR)
    middle = Collective("all_gather", "shard", 2, 4 * sum(SIZES) // 2)
    assert found.collective(middle) == pytest.approx(2.5)
    assert found.together(2.0, 1.0) == 3.0
    assert rates_from(times, Sharding(ranks=1)).collective(middle) == 0.0


def test_a_cluster_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["abacus"], ["rows=0"]):
        with pytest.raises(ValueError, match="the clusters are A100"):
            main(arguments)
    assert not capsys.readouterr().out
