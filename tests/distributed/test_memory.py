"""The predicted peak of a training step against what torch's CPU allocator really holds."""

from functools import partial

import pytest

from benchmarks.memory import peak_bytes
from benchmarks.steps import make_engine, random_batch, run_step
from models.config import LlamaConfig
from models.flops import num_parameters
from models.plan import full
from parallel.config import FsdpConfig, ParallelConfig
from parallel.memory import Workload, rank_memory
from parallel.world import start
from tests.ranks import run_ranks
from trainer.check import sharding_of

pytestmark = pytest.mark.ranks

CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
)
ROWS, LENGTH, CHUNK = 4, 128, 128
CASES = {
    "one rank": (1, ParallelConfig(), 0.05),
    "one rank, bfloat16": (1, ParallelConfig(precision="bfloat16"), 0.05),
    "two ranks": (2, ParallelConfig(), 0.05),
    "two ranks, bfloat16": (2, ParallelConfig(precision="bfloat16"), 0.05),
    "layers stay gathered": (
        2,
        ParallelConfig(fsdp=FsdpConfig(reshard_after_forward=False)),
        0.05,
    ),
    # What is alive within the one layer that is recomputed is not modelled one by one.
    "recomputed": (2, ParallelConfig(recompute=True), 0.2),
}


def _peak(parallel: ParallelConfig, exits: tuple[int, ...]) -> int:
    """On a rank: the most bytes of a step beside what is there before it."""
    world = start(device="cpu")
    engine = make_engine(CONFIG, parallel, world)
    batch = random_batch(CONFIG, ROWS, LENGTH, seed=world.rank)
    plan, weights = full(8, exits=exits), dict.fromkeys(exits, 1 / len(exits))
    step = partial(run_step, engine, [batch], [plan], weights, world=world, chunk_tokens=CHUNK)
    step()
    return peak_bytes(step)


@pytest.mark.parametrize("exits", [(8,), (2, 5, 8)], ids=["plain", "exits"])
@pytest.mark.parametrize(("ranks", "parallel", "tolerance"), CASES.values(), ids=CASES.keys())
def test_a_step_takes_the_predicted_memory(
    ranks: int, parallel: ParallelConfig, tolerance: float, exits: tuple[int, ...]
) -> None:
    work = Workload(rows=ROWS, seq_len=LENGTH, chunk_tokens=CHUNK, recompute=parallel.recompute)
    memory = rank_memory(CONFIG, sharding_of(parallel, ranks), work)
    copied = ranks == 1 and parallel.precision == "bfloat16"  # and kept from step to step
    there_before = memory.states + (2 * num_parameters(CONFIG) if copied else 0)
    found = max(run_ranks(partial(_peak, parallel, exits), world=ranks))
    assert found == pytest.approx(memory.total - there_before, rel=tolerance)
