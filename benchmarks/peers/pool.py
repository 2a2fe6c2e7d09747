"""The sides of one comparison: started together, checked against ours, then timed in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.case import Case, Precision
from benchmarks.peers.worker import Worker
from benchmarks.timing import Timings
from configs.command import ROOT

Key = tuple[str, Precision]
"""A side and the precision that it trains in."""

OURS = "ours"
MODULES = {
    OURS: "benchmarks.peers.ours",
    "hf_trainer": "benchmarks.peers.hf_trainer",
    "torchtune": "benchmarks.peers.torchtune_recipe",
    "litgpt": "benchmarks.peers.litgpt_fit",
}

STEPS = 2
"""Of a turn."""
ROUNDS = 5
CHECKED_STEPS = 3
"""Of which the losses must agree with ours; the first of them is timed apart."""
TOLERANCE = {"float32": 1e-5, "mixed": 2e-3, "pure": 2e-3}
"""Relative difference of losses; bfloat16 has 8 bits."""
LOGS = ROOT / "runs" / "benchmarks" / "logs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What a side says of itself before it is timed."""

    parameters: int
    weights: str
    """Their dtype."""
    moments: str
    """Their dtype."""
    losses: tuple[float, ...]
    """Of the checked steps."""
    first_step_seconds: float
    """With compilation, if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a side did."""

    started: Started
    timings: Timings
    """Of one step."""
    operators: tuple[tuple[str, float, float], ...]
    """Name, calls a step and own seconds a step, if profiled; the most expensive first."""


def disagreement(theirs: Started, ours: Started, precision: Precision) -> str | None:
    """Return why a side does not train what we train; None if it does."""
    if theirs.parameters != ours.parameters:
        return f"has {theirs.parameters} parameters, we have {ours.parameters}"
    for step, (their_loss, our_loss) in enumerate(zip(theirs.losses, ours.losses, strict=True)):
        if not abs(their_loss - our_loss) <= TOLERANCE[precision] * our_loss:
            return f"loss {their_loss:.6f} at step {step}, ours is {our_loss:.6f}"
    return None


class Pool:
    """One process for each side that is compared at once; they are kept for the next comparison."""

    def __init__(self, pythons: Mapping[str, Path], compile_cache: Path) -> None:
        self._pythons, self._compile_cache = pythons, compile_cache
        self._workers: dict[tuple[str, int], Worker] = {}

    def compare(
        self, cases: Mapping[Key, Case], *, profiled: bool
    ) -> tuple[dict[Key, Measured], dict[Key, str]]:
        """Train the cases, ours first, in turns; return what each did, and why others did not.

        Raises:
            RuntimeError: if ours fails, or another after it had started well.
        """
        workers = {key: self._worker(key, cases) for key in cases}  # all import at the same time
        started: dict[Key, Started] = {}
        failed: dict[Key, str] = {}
        for key, case in cases.items():
            try:
                started[key] = _start(workers[key], case)
            except RuntimeError as error:
                if key[0] == OURS:
                    raise
                failed[key] = str(error)
                self._workers = {k: w for k, w in self._workers.items() if w is not workers[key]}
                continue
            reason = disagreement(started[key], next(iter(started.values())), key[1])
            if reason is not None:
                failed[key] = reason
                workers[key].finish()
        ready = {key: workers[key] for key in started if key not in failed}
        timings = take_turns({key: worker.steps for key, worker in ready.items()})
        found = {
            key: Measured(
                started=started[key],
                timings=timings[key],
                operators=_operators(worker) if profiled else (),
            )
            for key, worker in ready.items()
        }
        for worker in ready.values():
            worker.finish()
        return found, failed

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    def _worker(self, key: Key, cases: Mapping[Key, Case]) -> Worker:
        """Return the process of a key: the first of its side's for its first precision."""
        side = key[0]
        slot = (side, [other for other in cases if other[0] == side].index(key))
        if slot not in self._workers:
            self._workers[slot] = Worker(
                self._pythons[side],
                MODULES[side],
                log=LOGS / f"{side}-{slot[1]}.log",
                compile_cache=self._compile_cache,
            )
        return self._workers[slot]


def _start(worker: Worker, case: Case) -> Started:
    """Have a side build a case and take the checked steps."""
    built = worker.build(case)
    first = worker.steps(1)
    others = worker.steps(CHECKED_STEPS - 1)
    return Started(
        **built,
        losses=(*first["losses"], *others["losses"]),
        first_step_seconds=first["wall"],
    )


def take_turns(sides: Mapping[Key, Callable[[int], dict[str, Any]]]) -> dict[Key, Timings]:
    """Return the seconds a step of each side in each round; every second round goes backwards.

    Args:
        sides: what runs a number of steps and returns `wall` and `cpu` seconds.
    """
    seconds: dict[Key, list[tuple[float, float]]] = {key: [] for key in sides}
    for index in range(ROUNDS):
        for key in reversed(list(sides)) if index % 2 else list(sides):
            answer = sides[key](STEPS)
            seconds[key].append((answer["wall"] / STEPS, answer["cpu"] / STEPS))
    return {key: Timings(*zip(*pairs, strict=True)) for key, pairs in seconds.items()}


def _operators(worker: Worker) -> tuple[tuple[str, float, float], ...]:
    rows = worker.steps(STEPS, profile=True)["profile"]
    return tuple((name, calls / STEPS, seconds / STEPS) for name, calls, seconds in rows)
