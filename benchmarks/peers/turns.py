"""How a side takes orders: a line of JSON in, some training steps, a line of JSON out.

Imports torch only: it runs in the environment of every peer. Between orders a side waits in a
read, and its threads sleep.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.case import Case

PROFILE_ROWS = 24
"""Operators that a profile reports, the most expensive ones."""


class Turns:
    """The orders of the benchmark, as a training loop sees them.

    A loop calls `ready` before its first step and `step_done` after each, and stops when told so.
    """

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders, self._answers = orders, answers
        self._left = 0
        self._losses: list[float] = []
        self._began = (0.0, 0.0)
        self._profile: profile | None = None

    def next_case(self) -> Case | None:
        """Wait for the next thing to train; None when there is none."""
        line = self._orders.readline()
        return Case(**json.loads(line)) if line else None

    def ready(self, weights: Iterable[Tensor], moments: str) -> bool:
        """Report what was built, wait for the first order; return whether to train.

        Args:
            weights: what the optimizer updates, of any shape.
            moments: the dtype of the optimizer's running means.
        """
        weights = list(weights)
        dtypes = {str(weight.dtype).removeprefix("torch.") for weight in weights}
        self._answer(
            parameters=sum(weight.numel() for weight in weights),
            weights="/".join(sorted(dtypes)),
            moments=moments,
        )
        return self._wait()

    def step_done(self, loss: float) -> bool:
        """Count a step; when the order is carried out, report and wait. Return whether to go on."""
        self._losses.append(loss)
        self._left -= 1
        if self._left:
            return True
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._answer(wall=wall, cpu=cpu, losses=self._losses, profile=self._stop_profile())
        return self._wait()

    def _wait(self) -> bool:
        order = json.loads(self._orders.readline() or '{"steps": 0}')
        self._left, self._losses = order["steps"], []
        if order.get("profile"):
            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.start()
        self._began = (time.perf_counter(), time.process_time())
        return bool(self._left)

    def _stop_profile(self) -> list[tuple[str, int, float]]:
        """Return (operator, calls, own seconds) of what ran since the order came."""
        if self._profile is None:
            return []
        self._profile.stop()
        rows = sorted(
            self._profile.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True
        )
        self._profile = None
        return [(r.key, r.count, r.self_cpu_time_total / 1e6) for r in rows[:PROFILE_ROWS]]

    def _answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self._answers, flush=True)


def serve(train: Callable[[Case, Turns], None]) -> None:
    """Train one case after another, until the benchmark closes the line."""
    # What a library prints must not reach the benchmark: it goes where the errors go.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    turns = Turns(sys.stdin, answers)
    while (case := turns.next_case()) is not None:
        train(case, turns)
        gc.collect()  # models hold themselves in cycles: hooks, callbacks
        if case.compile:
            torch.compiler.reset()
