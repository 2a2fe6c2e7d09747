import pytest
import torch

from benchmarks.collectives import count_collectives
from models.plan import full
from models.tokens import make_tokens
from parallel.config import ParallelConfig
from parallel.world import start
from tests.distributed.recipe import LENGTH, make_engine, microbatch, model_config
from tests.ranks import run_ranks
from trainer.losses import exit_losses

pytestmark = pytest.mark.ranks


def _collectives(exits: tuple[int, ...]) -> int:
    """On a rank: of the forward pass, losses and backward pass of a microbatch."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    batch, tokens = microbatch(0, 0), make_tokens(model_config(), torch.arange(LENGTH)[None])

    def run() -> None:
        hiddens = engine.forward(batch.ids, tokens, full(5, exits=exits))
        losses = exit_losses(
            engine.model,
            hiddens,
            batch.labels,
            dict.fromkeys(exits, 1 / len(exits)),
            total_tokens=10,
            chunk_tokens=16,
            measure=True,
        )
        engine.backward([hiddens[e] for e in losses.gradients], [*losses.gradients.values()])

    run()  # lazy initialisation is over when counting starts
    return count_collectives(run)


def test_the_head_is_gathered_and_reduced_once_however_many_exits() -> None:
    counts = {
        exits: run_ranks(_collectives, exits, world=2)[0] for exits in ((5,), (1, 2, 3, 4, 5))
    }
    # The root: one gather, one reduction. Five layers: two gathers and one reduction each.
    assert set(counts.values()) == {2 + 5 * 3}
