"""`python -m benchmarks.saving`: what a checkpoint costs the step that starts it.

A round is a step without a save; a step that starts one in the background, and the step after it;
and a step with a save that training waits for. The clock runs from before the save is asked for to
the end of the next update, so the copy to host memory, whatever of the writing falls into that time
and all competition for cores and memory are in it. The processor time counts the background too.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, text_table
from benchmarks.steps import make_engine, random_batch, run_step
from benchmarks.timing import Timings, ratio
from models.config import LlamaConfig
from models.flops import flops_of_plan
from models.plan import full
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig
from parallel.reduce import sum_over_ranks
from parallel.world import start, stop

MODEL = LlamaConfig(
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=512,
)
ROWS, LENGTH = 4, 512
"""Sequences of a rank's step and tokens of a sequence. They are few, which makes a save dear: a
step takes time for every token, a save for every parameter only. One rank has 1 GB of state for
each TFLOP of its step here; a 7B model on 8 ranks, 16k tokens on each, has 16 MB."""
ROUNDS = 5
WORLDS = (1, 2)
KINDS = ("plain", "background", "following", "waited")
"""Steps: without a save, starting one in the background, the one after that, waiting for one."""

Seconds = tuple[float, float]
"""By the wall clock, and of processor time."""


def measure(folder: str) -> dict[str, Any]:
    """On a rank: return the seconds of each kind of step, round by round, and the state's bytes."""
    world = start(device="cpu")
    engine = make_engine(MODEL, ParallelConfig(), world)
    batch, plan = random_batch(MODEL, ROWS, LENGTH), full(MODEL.num_hidden_layers)
    background, waited = (
        Checkpointer(Path(folder) / str(kind), engine, keep_last=1, asynchronous=kind)
        for kind in (True, False)
    )

    def step(saver: Checkpointer | None = None) -> Seconds:
        sum_over_ranks(torch.zeros(1))  # all ranks start together
        wall, cpu = time.perf_counter(), time.process_time()
        if saver is not None:
            saver.save(0, {}, lambda path: None)
        run_step(engine, [batch], [plan], {MODEL.num_hidden_layers: 1.0}, world=world)
        return time.perf_counter() - wall, time.process_time() - cpu

    def save_behind() -> dict[str, Seconds]:
        seconds = {"background": step(background), "following": step()}
        background.wait()
        return seconds

    jobs: list[Callable[[], dict[str, Seconds]]] = [
        lambda: {"plain": step()},
        save_behind,
        lambda: {"waited": step(waited)},
    ]
    step()  # makes the optimizer's state
    rounds = [_round(jobs[:: -1 if index % 2 else 1]) for index in range(1 + ROUNDS)]
    state = {**engine.weights(), **engine.optimizer_state()}
    stop()
    return {"first": rounds[0], "rounds": rounds[1:], "bytes": _bytes(state, world.size)}


def _round(jobs: list[Callable[[], dict[str, Seconds]]]) -> dict[str, Seconds]:
    return {kind: seconds for job in jobs for kind, seconds in job().items()}


def _bytes(state: dict[str, torch.Tensor], ranks: int) -> int:
    """Return one rank's share of a state of tensors of any shape."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values()) // ranks


def figures(measured: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Return one row: seconds of a plain step, and what the other kinds take compared with it."""
    timings = {
        kind: Timings(*zip(*(seconds[kind] for seconds in measured["rounds"]), strict=True))
        for kind in KINDS
    }
    plain = timings["plain"]
    row: dict[str, Any] = {
        "ranks": ranks,
        "tokens_per_rank": ROWS * LENGTH,
        "state_mb_per_rank": measured["bytes"] / 1e6,
        "state_mb_per_tflop": measured["bytes"] / 1e6 / (_step_flops() / 1e12),
        "step_seconds": plain.median(),
        "first_background": measured["first"]["background"][0] / plain.median(),
        "rounds": len(plain.wall),
    }
    for kind in KINDS[1:]:
        for clock in ("wall", "cpu"):
            compared = ratio(timings[kind], plain, clock)
            row[f"{kind}_{clock}"] = compared.value
            row[f"{kind}_{clock}_quartiles"] = [compared.low, compared.high]
    return row


def _step_flops() -> float:
    """Return what one rank computes in a step."""
    return flops_of_plan(
        full(MODEL.num_hidden_layers),
        MODEL,
        rows=ROWS,
        seq_len=LENGTH,
        num_exits_unembedded=1,
        backward=True,
    )


def main() -> None:
    """Measure on each number of ranks, print a table and a JSON line for each."""
    rows = []
    for ranks in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(figures(on_ranks(ranks, measure, folder)[0], ranks))
    columns = {
        "ranks": "ranks",
        "state MB a rank": "state_mb_per_rank",
        "step s": "step_seconds",
        "state MB per TFLOP": "state_mb_per_tflop",
        "background": "background_wall",
        "CPU": "background_cpu",
        "first": "first_background",
        "following": "following_wall",
        "waited": "waited_wall",
    }
    table = text_table(list(columns), [[row[key] for key in columns.values()] for row in rows])
    sys.stdout.write(f"{table}\n\n")
    for row in rows:
        sys.stdout.write(json_line("saving", **row) + "\n")


if __name__ == "__main__":
    main()
