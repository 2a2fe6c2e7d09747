"""Training on packed documents: sharded, against a plain loop over one document at a time."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from data_pipelines.loader import Batch
from models.llama import Llama
from models.plan import LayerPlan, Visit
from models.tokens import make_tokens
from parallel.config import ParallelConfig
from parallel.world import start
from tests.distributed.recipe import (
    LENGTH,
    ROWS,
    engine_steps,
    make_engine,
    microbatch,
    model_config,
    plan_and_weights,
    trained_plainly,
    whole,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks


def packed(step: int, index: int) -> Batch:
    """Return a microbatch with up to four documents a row, labelled as the loader does."""
    batch = microbatch(step, index)
    generator = torch.Generator().manual_seed(7000 * step + index)
    documents = torch.randint(0, 4, (ROWS, LENGTH + 1), generator=generator).sort(dim=1).values
    is_border = documents[:, 1:] != documents[:, :-1]
    here = torch.arange(LENGTH)
    starts = torch.where(pad(is_border[:, :-1], (1, 0)), here, 0).cummax(dim=1).values
    labels = batch.labels.masked_fill(is_border, -100)
    return Batch(batch.ids, labels, here - starts, documents[:, :-1].contiguous())


def trained_by_engine(parallel: ParallelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    world = start(device="cpu")
    engine = make_engine(model_config(), parallel, world, dtype)
    losses = engine_steps(engine, world, batch=packed)
    state = {name: whole(t).clone() for name, t in engine.weights().items()}
    return state | {"losses": torch.tensor(losses)}


def documents_of(batch: Batch) -> Iterator[tuple[int, slice]]:
    """Yield row and positions of every document."""
    assert batch.documents is not None
    for row, ids in enumerate(batch.documents):
        start = 0
        for length in ids.unique_consecutive(return_counts=True)[1].tolist():
            yield row, slice(start, start + length)
            start += length


def loss_one_by_one(model: Llama, step: int, index: int) -> Tensor:
    """Return the weighted loss of a microbatch, each document alone in the layers its row keeps."""
    batch = packed(step, index)
    plan, weights = plan_and_weights(step, index, model.config.num_hidden_layers)
    loss = torch.zeros((), dtype=torch.float64)
    for row, part in documents_of(batch):
        tokens = make_tokens(model.config, torch.arange(part.stop - part.start)[None])
        kept = [v for v in plan.visits if v.gate is None or row in v.gate(torch.empty(0)).rows]
        own = LayerPlan(tuple(Visit(v.layer, v.parts) for v in kept), plan.exits)
        labels = batch.labels[row, part]
        for e, h in model(batch.ids[row, part][None], tokens, own).items():
            loss = loss + weights[e] * cross_entropy(model.unembed(h)[0], labels, reduction="sum")
    return loss


@cache
def trained_one_by_one() -> dict[str, Tensor]:
    return trained_plainly(batch=packed, loss_of=loss_one_by_one)


def assert_trained_one_by_one(parallel: ParallelConfig, world: int, timeout: float = 120) -> None:
    found = run_ranks(trained_by_engine, parallel, torch.float64, world=world, timeout=timeout)
    expected = trained_one_by_one()
    for name, value in found[0].items():
        difference = (expected[name].double() - value.double()).abs().max()
        assert difference <= 1e-6, f"{name} differs by {difference}"


@pytest.mark.parametrize("world", [1, 2])
def test_packed_documents_train_what_one_at_a_time_trains(world: int) -> None:
    assert_trained_one_by_one(ParallelConfig(), world)


def test_recomputed_packed_documents_train_the_same() -> None:
    assert_trained_one_by_one(ParallelConfig(recompute=True), 2)


@pytest.mark.slow
def test_compiled_layers_train_the_same_on_packed_documents() -> None:
    assert_trained_one_by_one(ParallelConfig(compile=True), 2, timeout=400)


def test_bfloat16_on_packed_documents_follows_the_float64_curve() -> None:
    config = ParallelConfig(precision="bfloat16")
    found = run_ranks(trained_by_engine, config, torch.float32, world=2)[0]["losses"]
    expected = trained_one_by_one()["losses"]
    torch.testing.assert_close(found.double(), expected.double(), rtol=0.02, atol=0)
