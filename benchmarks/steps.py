"""Training steps on random tokens: what the speed benchmarks time.

Letters: B rows, S positions.
"""

from collections.abc import Sequence

import torch

from data_pipelines.loader import Batch
from models.config import LlamaConfig
from models.hf import load_weights
from models.init import Assign, init_weights
from models.llama import Llama
from models.plan import LayerPlan
from parallel.config import ParallelConfig
from parallel.engine import Engine, build_engine
from parallel.world import World
from trainer.optim import OptimConfig, build_adamw
from trainer.step import StepResult, train_step

OPTIM = OptimConfig(lr=1e-4)


def make_engine(
    config: LlamaConfig,
    parallel: ParallelConfig,
    world: World,
    *,
    weights: str | None = None,
    optim: OptimConfig = OPTIM,
) -> Engine:
    """Return a model with AdamW, sharded over the ranks of the world.

    Args:
        config: of the model.
        parallel: of the sharding.
        world: this rank's place.
        weights: a Hugging Face folder to load; None initialises afresh.
        optim: of AdamW.
    """
    with torch.device("meta"):
        model = Llama(config)

    def fill(sharded: Llama, assign: Assign) -> None:
        if weights is None:
            init_weights(sharded, config, seed=0, assign=assign)
        else:
            load_weights(sharded, weights, assign=assign)

    return build_engine(
        model,
        parallel,
        world,
        fill=fill,
        make_optimizer=lambda sharded: build_adamw(sharded, optim),
    )


def random_batch(config: LlamaConfig, rows: int, seq_len: int, *, seed: int = 0) -> Batch:
    """Return B rows of S random tokens, a single document."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (rows, seq_len + 1), generator=generator)
    positions = torch.arange(seq_len)[None]
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions, None)


def run_step(
    engine: Engine,
    batches: Sequence[Batch],
    plans: Sequence[LayerPlan],
    weights: dict[int, float],
    *,
    world: World,
    step: int = 0,
    chunk_tokens: int | None = None,
) -> StepResult:
    """Run one whole optimiser step as the trainer does: forward, losses, backward, update."""
    return train_step(
        engine,
        batches,
        plans,
        weights,
        step=step,
        learning_rate=OPTIM.lr,
        clip_norm=OPTIM.clip_norm,
        chunk_tokens=chunk_tokens,
        device=world.device,
        measure=False,
    )
