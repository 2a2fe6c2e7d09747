"""`python -m benchmarks.zero`: FSDP2 against DeepSpeed ZeRO-1, -2 and -3 on two ranks.

All four engines live in the same two processes and take turns, step by step, with the same model,
batch, plans and optimizer. For each: the time of a full step, peak memory of a rank from building
the engine on, collectives of a full step, what a plan that leaves half of the layers out saves of
the time over what it saves of the FLOPs, and the loss after 50 steps of the recipe from the same
weights.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.collectives import count_collectives
from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, spread_cell, text_table
from benchmarks.memory import peak_bytes
from benchmarks.savings import ENGINES, MODEL
from benchmarks.steps import make_engine, random_batch, run_step
from benchmarks.timing import Timings, interleave, ratio, spread
from models.flops import flops_of_plan
from models.plan import LayerPlan, dropped, full
from parallel.engine import Engine
from parallel.world import World, start, stop
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import plan_step
from trainer.recipe_config import ExitLossConfig, LayerDropoutConfig

RANKS = 2
ROWS, SEQ_LEN = 8, 256
ROUNDS = 6
STEPS, LEARNING_ROWS = 50, 2
DROPOUT = LayerDropoutConfig(max_prob=0.2)
EXITS = ExitLossConfig(e_scale=1.0, curriculum="rotational", rotation=4)
COLUMNS = (
    "engine",
    "full step s",
    "over FSDP2 (quartiles)",
    "by CPU time",
    "peak MiB a rank",
    "collectives",
    "saved / ideal (quartiles)",
    "loss after 50 steps",
)


def half() -> LayerPlan:
    """Return the plan that leaves out every second layer."""
    none = torch.tensor([], dtype=torch.int64)
    return dropped([none if layer % 2 else None for layer in range(MODEL.num_hidden_layers)])


def share_skipped() -> float:
    """Return the share of a step's FLOPs that `half` leaves out."""
    some, everything = (
        flops_of_plan(
            plan, MODEL, rows=ROWS, seq_len=SEQ_LEN, num_exits_unembedded=1, backward=True
        )
        for plan in (half(), full(MODEL.num_hidden_layers))
    )
    return 1 - some / everything


def measure() -> list[dict[str, Any]]:
    """Build, count and time all engines on this rank; return a row for each."""
    world = start(device="cpu")
    layers = MODEL.num_hidden_layers
    batch = random_batch(MODEL, ROWS, SEQ_LEN, seed=world.rank)
    rows: dict[str, dict[str, Any]] = {}
    jobs: dict[str, Callable[[], object]] = {}
    for name, parallel in ENGINES.items():
        built: list[Engine] = []

        def build(engines: list[Engine] = built, config: Any = parallel) -> None:
            engines.append(make_engine(MODEL, config, world))
            for _ in range(2):
                run_step(engines[0], [batch], [full(layers)], {layers: 1.0}, world=world)

        peak = peak_bytes(build)
        for kind, plan in (("full", full(layers)), ("half", half())):
            jobs[f"{name} {kind}"] = partial(
                run_step, built[0], [batch], [plan], {layers: 1.0}, world=world
            )
        rows[name] = {
            "engine": name,
            "peak_mib": peak / 2**20,
            "collectives": count_collectives(jobs[f"{name} full"]),
        }
    times = interleave(jobs, rounds=ROUNDS, wait=dist.barrier)
    for name, row in rows.items():
        row |= figures(times, name)
    for name, parallel in ENGINES.items():
        rows[name]["loss"] = learn(make_engine(MODEL, parallel, world), world)
    stop()
    return list(rows.values())


def figures(times: dict[str, Timings], name: str) -> dict[str, Any]:
    """Return the timed figures of an engine."""
    everything, some, ours = times[f"{name} full"], times[f"{name} half"], times["FSDP2 full"]
    pairs = zip(some.wall, everything.wall, strict=True)
    saved = tuple((1 - one / whole) / share_skipped() for one, whole in pairs)
    return {
        "full_step_seconds": everything.median(),
        "over_fsdp2": asdict(ratio(everything, ours)),
        "over_fsdp2_cpu": asdict(ratio(everything, ours, "cpu")),
        "saved_over_ideal": asdict(spread(saved)),
    }


def learn(engine: Engine, world: World) -> float:
    """Train on the recipe; return the loss of the last step."""
    loss = float("nan")
    batch = random_batch(MODEL, LEARNING_ROWS, 64, seed=world.rank)  # the same: learnt by heart
    for step in range(STEPS):
        weights = exit_weights(EXITS, MODEL.num_hidden_layers, step, STEPS)
        plan = plan_step(
            DROPOUT,
            num_layers=MODEL.num_hidden_layers,
            step=step,
            total_steps=STEPS,
            seed=0,
            microbatch=world.rank,
            rows=LEARNING_ROWS,
            exits=tuple(weights),
        )
        loss = run_step(engine, [batch], [plan], weights, world=world, step=step).loss
    return loss


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    return text_table(
        COLUMNS,
        [
            (
                row["engine"],
                row["full_step_seconds"],
                spread_cell(row["over_fsdp2"]),
                spread_cell(row["over_fsdp2_cpu"]),
                row["peak_mib"],
                row["collectives"],
                spread_cell(row["saved_over_ideal"]),
                f"{row['loss']:.5f}",
            )
            for row in rows
        ],
    )


def main() -> None:
    """Measure; print a table, then a JSON line an engine."""
    rows = on_ranks(RANKS, measure, threads=1)[0]
    sys.stdout.write(table(rows) + "\n")
    sys.stdout.writelines(json_line("zero", **row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
