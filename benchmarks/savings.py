"""`python -m benchmarks.savings [zero]`: how much of the skipped work turns into saved time.

For one and two FSDP2 ranks, or with `zero` for two ranks at each stage of ZeRO, both granularities
and several drop probabilities p, whole optimiser steps (forward, loss, backward, reduction,
clipping, AdamW) under plans of layer dropout take turns with the full step. `saved_over_ideal` is
the share of time saved over the share of FLOPs that the plan skips, the head's among all: 1.0 would
mean that nothing is left but what was asked for. What no plan can skip is the update of all
weights, at stages 1 and 2 with their gather: its share of the full step is what is missing to 1.0
at best. A rank has one thread, whatever their number, so that ranks can be compared.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from statistics import median
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

from benchmarks.collectives import count_collectives
from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, spread_cell, text_table
from benchmarks.steps import make_engine, random_batch, run_step
from benchmarks.timing import Clock, Timings, interleave, spread
from configs.command import run_command
from data_pipelines.loader import Batch
from models.config import LlamaConfig
from models.flops import flops_of_plan
from models.plan import LayerPlan, dropped, full
from parallel.config import ParallelConfig, Stage, ZeroConfig
from parallel.engine import Engine
from parallel.world import World, start, stop
from trainer.layer_dropout import plan_step
from trainer.recipe_config import LayerDropoutConfig

Granularity = Literal["sample", "batch"]

MODEL = LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
ROWS, SEQ_LEN = 16, 256
ENGINES = {"FSDP2": ParallelConfig(precision="bfloat16")} | {
    f"ZeRO-{stage}": ParallelConfig(precision="bfloat16", zero=ZeroConfig(stage=stage))
    for stage in get_args(Stage)
}
GRAINS: tuple[Granularity, ...] = ("batch", "sample")
SETUPS: dict[str, list[tuple[int, str, Granularity]]] = {
    "fsdp": [(ranks, "FSDP2", grain) for ranks in (1, 2) for grain in GRAINS],
    "zero": [
        (2, "ZeRO-1", "batch"),
        (2, "ZeRO-2", "batch"),
        (2, "ZeRO-3", "batch"),
        (2, "ZeRO-3", "sample"),
    ],
}
"""Ranks, engine and granularity; one rank is not sharded."""
PROBABILITIES = (0.0, 0.3, 0.5, 0.7)
ROUNDS = 4
COLUMNS = (
    "engine",
    "ranks",
    "granularity",
    "p",
    "FLOPs skipped",
    "time saved",
    "saved / ideal (quartiles)",
    "by CPU time",
    "update / full step",
    "collectives of a layer not visited",
)


def plans_of(
    p: float, granularity: Granularity, *, microbatch: int, seed: int = 0
) -> Iterator[LayerPlan]:
    """Yield the plans of steps 0, 1, ... for one microbatch; p is the same for every layer."""
    config = LayerDropoutConfig(max_prob=p, curve="uniform", granularity=granularity)
    for step in count():
        yield plan_step(
            config,
            num_layers=MODEL.num_hidden_layers,
            step=step,
            total_steps=1_000_000,
            seed=seed,
            microbatch=microbatch,
            rows=ROWS,
        )


def flops(plan: LayerPlan) -> float:
    """Return the FLOPs of a training step of one rank: visited layers and one head."""
    return flops_of_plan(
        plan, MODEL, rows=ROWS, seq_len=SEQ_LEN, num_exits_unembedded=1, backward=True
    )


def measure(name: str, granularity: Granularity) -> list[dict[str, Any]]:
    """Time steps of an engine on this rank; return a row for each probability."""
    parallel = ENGINES[name]
    world = start(device=parallel.device)
    engine = make_engine(MODEL, parallel, world)
    batch = random_batch(MODEL, ROWS, SEQ_LEN, seed=world.rank)
    step = partial(_step, engine, batch, world)
    everything = full(MODEL.num_hidden_layers)
    if granularity == "sample":
        for kept in range(1, ROWS):  # a shape's first products make their kernels, once in a run
            step(dropped([torch.arange(kept)] * MODEL.num_hidden_layers))
    extra, update = collectives_of_unvisited(step), update_seconds(engine, step)
    rows = []
    for p in PROBABILITIES:
        plans, skipped = plans_of(p, granularity, microbatch=world.rank), list[float]()

        def some(plans: Iterator[LayerPlan] = plans, shares: list[float] = skipped) -> None:
            plan = next(plans)
            shares.append(1 - flops(plan) / flops(everything))
            step(plan)

        # Two steps at a time, so that a pair is over before the machine's mood changes.
        jobs: dict[str, Callable[[], object]] = {"full": partial(step, everything), "some": some}
        times = interleave(jobs, rounds=ROUNDS, wait=dist.barrier)
        rows.append(
            {
                "engine": name,
                "ranks": world.size,
                "granularity": granularity,
                "p": p,
                "step_seconds": times["some"].median(),
                "full_step_seconds": times["full"].median(),
                "update_seconds": update,
                "collectives_of_unvisited_layer": extra,
                **savings(skipped[-ROUNDS:], times["some"], times["full"]),
            }
        )
    stop()
    return rows


def _step(engine: Engine, batch: Batch, world: World, plan: LayerPlan) -> None:
    run_step(engine, [batch], [plan], {MODEL.num_hidden_layers: 1.0}, world=world)


def savings(skipped: list[float], some: Timings, everything: Timings) -> dict[str, Any]:
    """Return the share of FLOPs skipped, the share of time saved, and the one over the other.

    Args:
        skipped: the share of FLOPs that the plan of each round leaves out.
        some: the rounds with these plans.
        everything: the rounds with the full plan.
    """
    figures: dict[str, Any] = {"skipped_flops": sum(skipped) / len(skipped)}

    def saved(clock: Clock) -> list[float]:
        pairs = zip(some.of(clock), everything.of(clock), strict=True)
        return [1 - ours / theirs for ours, theirs in pairs]

    figures["saved_time"] = spread(tuple(saved("wall"))).value
    names: dict[Clock, str] = {"wall": "saved_over_ideal", "cpu": "saved_over_ideal_cpu"}
    for clock, name in names.items():
        pairs = [(s, f) for s, f in zip(saved(clock), skipped, strict=True) if f > 0]
        figures[name] = asdict(spread(tuple(s / f for s, f in pairs))) if pairs else None
    return figures


def update_seconds(engine: Engine, step: Callable[[LayerPlan], object], repeats: int = 5) -> float:
    """Return the time of the update at the end of a step, which moves all weights."""
    begun: list[float] = []
    engine.before_update(lambda: begun.append(time.perf_counter()))
    seconds = []
    for _ in range(repeats):
        step(full(MODEL.num_hidden_layers))
        seconds.append(time.perf_counter() - begun[-1])
    return median(seconds)


def collectives_of_unvisited(step: Callable[[LayerPlan], object]) -> float:
    """Return the collectives that a layer causes in a step which does not visit it."""
    none = torch.tensor([], dtype=torch.int64)
    counts = []
    step(full(MODEL.num_hidden_layers))  # the first one also spreads the fresh weights
    for visited in (1, 3, MODEL.num_hidden_layers):
        plan = dropped([None] * visited + [none] * (MODEL.num_hidden_layers - visited))
        counts.append(count_collectives(partial(step, plan)))
    of_visited = (counts[1] - counts[0]) / 2
    fixed = counts[2] - of_visited * MODEL.num_hidden_layers  # nothing is unvisited in this one
    return (counts[1] - fixed - 3 * of_visited) / (MODEL.num_hidden_layers - 3)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    return text_table(
        COLUMNS,
        [
            (
                r["engine"],
                r["ranks"],
                r["granularity"],
                r["p"],
                f"{r['skipped_flops']:.3f}",
                f"{r['saved_time']:.3f}",
                spread_cell(r["saved_over_ideal"]),
                spread_cell(r["saved_over_ideal_cpu"]),
                f"{r['update_seconds'] / r['full_step_seconds']:.3f}",
                r["collectives_of_unvisited_layer"],
            )
            for r in rows
        ],
    )


def main(words: list[str]) -> None:
    """Measure every combination; print its table and a JSON line a row as soon as it is known.

    Raises:
        ValueError: for a word that is not `zero`.
    """
    if words not in ([], ["zero"]):
        raise ValueError(f"arguments {' '.join(words)}: there is only zero, or nothing")
    for ranks, name, granularity in SETUPS["zero" if words else "fsdp"]:
        rows = on_ranks(ranks, measure, name, granularity, threads=1)[0]
        sys.stdout.write(table(rows) + "\n")
        sys.stdout.writelines(json_line("savings", **row) + "\n" for row in rows)
        sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
