"""Our own training step: `trainer.step` over the engine, as `python -m trainer` runs it."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.case import (
    BETAS,
    CLIP_NORM,
    EPS,
    IGNORED,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Case,
    batches,
)
from benchmarks.peers.turns import Turns, serve
from benchmarks.steps import make_engine
from data_pipelines.loader import Batch
from models.config import LlamaConfig
from models.plan import full
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.world import World, start
from trainer.optim import OptimConfig
from trainer.step import train_step

OPTIM = OptimConfig(
    lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
)


def build(case: Case, world: World) -> Engine:
    """Return the engine that a configuration file with these values would train."""
    parallel = ParallelConfig(
        device="cpu",
        precision="float32" if case.precision == "float32" else "bfloat16",
        compile=case.compile,
    )
    config = LlamaConfig(**case.model)
    return make_engine(config, parallel, world, weights=case.weights, optim=OPTIM)


def batch_of(ids: Tensor) -> Batch:
    """Return ids (B, S) as a batch whose labels are the next tokens."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:]
    return Batch(ids, labels, torch.arange(ids.shape[1])[None], None)


def main(world: World) -> Callable[[Case, Turns], None]:
    """Return what trains a case on this process."""

    def train(case: Case, turns: Turns) -> None:
        engine, num_layers = build(case, world), case.model["num_hidden_layers"]
        some, step = [batch_of(ids) for ids in batches(case)], 0
        go_on = turns.ready(engine.weights().values(), "float32")
        while go_on:
            result = train_step(
                engine,
                [some[step % len(some)]],
                [full(num_layers)],
                {num_layers: 1.0},
                step=step,
                learning_rate=LEARNING_RATE,
                clip_norm=CLIP_NORM,
                chunk_tokens=None,
                device=world.device,
                measure=False,
            )
            step += 1
            go_on = turns.step_done(result.loss)

    return train


if __name__ == "__main__":
    serve(main(start(device="cpu")))
