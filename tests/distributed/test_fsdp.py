import pytest
import torch
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from models.plan import dropped, full
from models.tokens import make_tokens
from parallel.config import FsdpConfig, ParallelConfig
from parallel.world import start
from tests.distributed.recipe import (
    LENGTH,
    assert_same,
    engine_steps,
    make_engine,
    microbatch,
    model_config,
    trained_by_engine,
    trained_plainly,
)
from tests.ranks import RankError, run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_any_number_of_ranks_trains_what_a_plain_loop_trains(world: int, tied: bool) -> None:
    found = run_ranks(trained_by_engine, ParallelConfig(), tied, world=world)
    for of_rank in found:
        assert_same(of_rank, trained_plainly(tied), 1e-6)


def test_hybrid_sharding_trains_the_same() -> None:
    config = ParallelConfig(fsdp=FsdpConfig(shard_size=2))
    found = run_ranks(trained_by_engine, config, world=4)
    assert_same(found[3], trained_plainly(), 1e-6)


def test_recomputing_activations_trains_the_same() -> None:
    found = run_ranks(trained_by_engine, ParallelConfig(recompute=True), world=2)
    assert_same(found[0], trained_plainly(), 1e-6)


def test_keeping_layers_gathered_trains_the_same() -> None:
    config = ParallelConfig(fsdp=FsdpConfig(reshard_after_forward=False))
    found = run_ranks(trained_by_engine, config, world=2)
    assert_same(found[0], trained_plainly(), 1e-6)


def test_small_chunks_of_logits_train_the_same() -> None:
    found = run_ranks(trained_by_engine, ParallelConfig(), False, 7, world=2)
    assert_same(found[0], trained_plainly(), 1e-6)


@pytest.mark.slow
def test_compiled_layers_train_the_same() -> None:
    found = run_ranks(trained_by_engine, ParallelConfig(compile=True), world=2, timeout=300)
    assert_same(found[0], trained_plainly(), 1e-6)


@pytest.mark.parametrize("world", [1, 4])
def test_a_shard_size_that_does_not_divide_is_refused_in_one_line(world: int) -> None:
    config = ParallelConfig(fsdp=FsdpConfig(shard_size=3))
    with pytest.raises(RankError, match=f"shard_size 3 must divide the number of ranks {world}"):
        run_ranks(trained_by_engine, config, world=world)


def _collectives(live: list[int]) -> Tensor:
    """On a rank: one forward and backward through these layers only; gathers and reductions."""
    world = start(device="cpu")
    config = model_config()
    engine = make_engine(config, ParallelConfig(), world)
    survivors = [None if i in live else torch.tensor([], dtype=torch.long) for i in range(5)]
    ids, tokens = microbatch(0, 0).ids, make_tokens(config, torch.arange(LENGTH)[None])
    engine.forward(ids, tokens, full(5))  # lazy initialisation is over when counting starts
    engine.release()
    with CommDebugMode() as comm:
        h = engine.forward(ids, tokens, dropped(survivors))[5]
        engine.backward([h], [torch.ones_like(h)])
    counts = {str(op): n for op, n in comm.get_comm_counts().items()}
    gathers = sum(n for op, n in counts.items() if "gather" in op)
    reductions = sum(n for op, n in counts.items() if "reduce" in op)
    untouched = all(
        p.grad is None
        for i in set(range(5)) - set(live)
        for p in engine.model.layers[str(i)].parameters()
    )
    return torch.tensor([gathers, reductions, int(untouched)])


def test_a_layer_that_is_not_visited_has_no_collective() -> None:
    counted = {n: run_ranks(_collectives, list(range(n)), world=2)[0].tolist() for n in (1, 2, 5)}
    # Root: one gather and one reduction. A visited layer: a gather forward, one backward (the last
    # one is still gathered then, or is not: whatever FSDP2 does, it does it for visited layers).
    per_layer = [(counted[5][i] - counted[2][i]) / 3 for i in (0, 1)]
    assert per_layer == [2, 1]
    assert counted[2][:2] == [counted[1][0] + 2, counted[1][1] + 1]
    assert all(c[2] for c in counted.values())


def _mixed_precision() -> dict[str, Tensor]:
    world = start(device="cpu")
    engine = make_engine(
        model_config(), ParallelConfig(precision="bfloat16"), world, dtype=torch.float32
    )
    losses = engine_steps(engine, world)
    dtypes = {str(p.dtype) for p in engine.weights().values()}
    return {
        "losses": torch.tensor(losses),
        "masters_are_float32": torch.tensor(dtypes == {"torch.float32"}),
    }


@pytest.mark.parametrize("world", [1, 2])
def test_bfloat16_keeps_float32_masters_and_follows_the_float64_curve(world: int) -> None:
    found = run_ranks(_mixed_precision, world=world)[0]
    assert found["masters_are_float32"]
    torch.testing.assert_close(
        found["losses"].double(), trained_plainly()["losses"].double(), rtol=0.02, atol=0
    )


def _logits_after_new_weights() -> Tensor:
    """On a rank: steps in bfloat16, then weights written as a checkpoint writes them."""
    world, config = start(device="cpu"), model_config()
    parallel = ParallelConfig(precision="bfloat16")
    engine = make_engine(config, parallel, world, dtype=torch.float32)
    fresh = {name: p.clone() for name, p in engine.weights().items()}
    engine_steps(engine, world)
    for name, p in engine.weights().items():
        p.copy_(fresh[name])
    ids, tokens = microbatch(0, 0).ids, make_tokens(config, torch.arange(LENGTH)[None])
    with torch.no_grad():
        found = engine.model.unembed(engine.forward(ids, tokens, full(5))[5])
    again = make_engine(config, parallel, world, dtype=torch.float32)
    with torch.no_grad():
        expected = again.model.unembed(again.forward(ids, tokens, full(5))[5])
    return torch.stack((found, expected))


@pytest.mark.parametrize("world", [1, 2])
def test_weights_that_were_read_are_what_computes(world: int) -> None:
    found, expected = run_ranks(_logits_after_new_weights, world=world)[0]
    assert torch.equal(found, expected)


def _gradients_of_two_microbatches() -> dict[str, Tensor]:
    """On a rank alone, in bfloat16: what the optimizer is given after two microbatches."""
    world, config = start(device="cpu"), model_config()
    parallel = ParallelConfig(precision="bfloat16")
    engine = make_engine(config, parallel, world, dtype=torch.float32)
    tokens = make_tokens(config, torch.arange(LENGTH)[None])
    for index in range(2):
        hidden = engine.forward(microbatch(0, index).ids, tokens, full(5))[5]
        engine.backward([hidden], [torch.ones_like(hidden)])
    engine.grad_norm(None)
    given: dict[str, Tensor] = {}
    parameters = {id(p): name for name, p in engine._masters.named_parameters()}
    for group in engine._optimizer.param_groups:
        given |= {parameters[id(p)]: p.grad for p in group["params"]}
    return given


def test_alone_in_bfloat16_gradients_add_up_in_float32() -> None:
    found = run_ranks(_gradients_of_two_microbatches, world=1)[0]
    assert {g.dtype for g in found.values()} == {torch.float32}
    wide = found["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(wide, wide.bfloat16().float()), "the sum was rounded to bfloat16"
