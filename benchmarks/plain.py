"""`python -m benchmarks.plain [compile] [profile]`: plain training, ours against the others'.

The same Llama, weights, tokens, AdamW and clipping on every side; each peer runs its own loop
inside its own environment (`benchmarks.peers`), and the losses of the first steps must agree. One
process a side; they take turns, and only one works at a time. A peer that cannot be installed or
run is named with the reason.

`compile` measures every side compiled instead, each in its own recipe's way; the seconds of the
first step then hold the compilation, from an empty cache. `profile` adds each side's most expensive
operators.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.lines import json_line, text_table
from benchmarks.peers.case import Case, Precision
from benchmarks.peers.environments import environment
from benchmarks.peers.pool import MODULES, OURS, Key, Measured, Pool
from benchmarks.timing import Clock, Spread, ratio
from configs.command import run_command
from models.config import LlamaConfig
from models.hf import save_pretrained
from models.init import init_weights
from models.llama import Llama

Family = Literal["float32", "bfloat16"]

PRECISIONS: dict[Family, dict[str, tuple[Precision, ...]]] = {
    "float32": dict.fromkeys(MODULES, ("float32",)),
    "bfloat16": {
        OURS: ("mixed",),
        "hf_trainer": ("mixed", "pure"),
        "torchtune": ("pure",),
        "litgpt": ("mixed", "pure"),
    },
}
"""What each side is asked for, ours first. Our masters are always float32: we have no pure
bfloat16. torchtune has no mixed precision."""

GOAL = 1.2
"""Of our tokens per second over the best peer's."""
PROFILED_OPERATORS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model and a batch."""

    name: str
    model: LlamaConfig
    rows: int
    seq_len: int


SHAPES = (
    Shape(
        name="wide 32M",
        model=LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
        ),
        rows=4,
        seq_len=256,
    ),
    Shape(
        name="deep 14M",
        model=LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=16,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        rows=8,
        seq_len=256,
    ),
)


def main(words: list[str]) -> None:
    """Measure all shapes and precisions; print a table for each, then a JSON line a row."""
    compiled, profiled = parse(words)
    pythons, missing = find_interpreters()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(pythons, Path(folder) / "compiled")
        try:
            for index, shape in enumerate(SHAPES):
                weights = Path(folder) / f"weights_{index}"
                export(shape.model, weights)
                for family in PRECISIONS:
                    cases = cases_of(shape, family, weights, compiled=compiled)
                    could = {key: case for key, case in cases.items() if key[0] in pythons}
                    found, failed = pool.compare(could, profiled=profiled)
                    failed |= {key: missing[key[0]] for key in cases if key not in could}
                    some = rows_of(shape, family, compiled, found, failed)
                    print(f"\n{shape.name}, {family}{', compiled' if compiled else ''}")
                    print(text_table(COLUMNS, [[row[name] for name in COLUMNS] for row in some]))
                    report(found)
                    rows += some
        finally:
            pool.close()
    for row in rows:
        print(json_line("plain", **row))


def parse(words: Sequence[str]) -> tuple[bool, bool]:
    """Return whether to compile and whether to profile.

    Raises:
        ValueError: for any other word.
    """
    for word in words:
        if word not in ("compile", "profile"):
            raise ValueError(f"argument {word} is neither compile nor profile: leave it out")
    return "compile" in words, "profile" in words


def find_interpreters() -> tuple[dict[str, Path], dict[str, str]]:
    """Return the interpreter of each side, and why others have none; makes what is missing."""
    pythons, missing = {OURS: Path(sys.executable)}, {}
    for name in MODULES:
        if name == OURS:
            continue
        began = time.perf_counter()
        try:
            pythons[name] = environment(name)
        except RuntimeError as error:
            missing[name] = str(error)
        print(f"environment of {name}: {time.perf_counter() - began:.1f} s", flush=True)
    return pythons, missing


def export(config: LlamaConfig, folder: Path) -> None:
    """Write fresh weights, from which every side starts."""
    model = Llama(config)
    init_weights(model, config, seed=0)
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    save_pretrained(weights, config, folder, dtype=torch.float32)


def cases_of(shape: Shape, family: Family, weights: Path, *, compiled: bool) -> dict[Key, Case]:
    """Return what each side is asked to train, ours first."""
    return {
        (side, precision): Case(
            model=asdict(shape.model),
            weights=str(weights),
            rows=shape.rows,
            seq_len=shape.seq_len,
            precision=precision,
            compile=compiled,
            scratch=str(weights.with_name(f"{weights.name}-{side}-{precision}")),
        )
        for side, precisions in PRECISIONS[family].items()
        for precision in precisions
    }


COLUMNS = (
    "side",
    "precision",
    "weights",
    "moments",
    "tokens_per_second",
    "wall_seconds",
    "cpu_seconds",
    "first_step_seconds",
    "ours_over_it_wall",
    "ours_over_it_cpu",
    "note",
)


def rows_of(
    shape: Shape,
    family: Family,
    compiled: bool,
    found: Mapping[Key, Measured],
    failed: Mapping[Key, str],
) -> list[dict[str, Any]]:
    """Return a row for each side and precision; one that failed has its reason and no figures."""
    ours, tokens = next(iter(found.values())), shape.rows * shape.seq_len
    rows = []
    for key in [*found, *failed]:
        row: dict[str, Any] = {"shape": shape.name, "compute": family, "compiled": compiled}
        row |= dict.fromkeys(COLUMNS, "") | {"side": key[0], "precision": key[1]}
        if key in failed:
            rows.append(row | {"note": failed[key]})
            continue
        side, timings = found[key].started, found[key].timings
        row |= {
            "weights": side.weights,
            "moments": side.moments,
            "tokens_per_second": round(tokens / timings.median()),
            "wall_seconds": round(timings.median(), 4),
            "cpu_seconds": round(timings.median("cpu"), 4),
            "first_step_seconds": round(side.first_step_seconds, 1),
            "ours_over_it_wall": str(speedup(ours, found[key], "wall")),
            "ours_over_it_cpu": str(speedup(ours, found[key], "cpu")),
            "parameters": side.parameters,
            "losses": side.losses,
        }
        rows.append(row)
    return rows


def speedup(ours: Measured, theirs: Measured, clock: Clock) -> Spread:
    """Return our tokens per second over theirs: their time over ours, round by round."""
    return ratio(theirs.timings, ours.timings, clock)


def best_peer(found: Mapping[Key, Measured], clock: Clock) -> Key | None:
    """Return the peer and precision that we are least ahead of; None without peers."""
    ours = next(iter(found.values()))
    peers = [key for key in found if key[0] != OURS]
    return min(peers, key=lambda key: speedup(ours, found[key], clock).value, default=None)


def report(found: Mapping[Key, Measured]) -> None:
    """Print how we stand against the best peer, and the profiles if there are any."""
    ours = next(iter(found.values()))
    for clock in ("wall", "cpu"):
        best = best_peer(found, clock)
        if best is not None:
            gain = speedup(ours, found[best], clock)
            verdict = "reached" if gain.value >= GOAL else "missed"
            print(f"{clock} time: {gain} times {best[0]} ({best[1]}); {GOAL} is {verdict}")
    for key, side in found.items():
        if side.operators:
            print(f"\n{key[0]} ({key[1]}), ms a step:\n{operators_table(side)}")
    sys.stdout.flush()


def operators_table(side: Measured) -> str:
    """Return a side's most expensive operators, as shares of its profiled operators' seconds."""
    total = sum(seconds for _, _, seconds in side.operators)
    rows = [
        (name.removeprefix("aten::"), round(calls), 1000 * seconds, f"{seconds / total:.0%}")
        for name, calls, seconds in side.operators[:PROFILED_OPERATORS]
    ]
    return text_table(["operator", "calls", "ms", "share"], rows)


if __name__ == "__main__":
    run_command(main)
