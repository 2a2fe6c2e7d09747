"""A thread that ends a rank which makes no progress, even one that is stuck inside C++.

Collectives have a timeout of their own (`parallel/timeouts.py`); it comes after this one, because
this one can say which step and plan it was, and where every thread stood. Where the stuck code does
not even let other Python threads run, Python's fault handler, which needs none, has the last word.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from models.plan import LayerPlan
from parallel.timeouts import is_lost_rank
from parallel.world import World
from trainer.failures import LOST, WAIT_SECONDS, FailureFile

LOOKS_PER_LIMIT = 20
"""How often in the time allowed the thread looks at the clock, within the bounds below."""
LEAST_SECONDS, MOST_SECONDS = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class Doing:
    """What a rank is at, since when, and how long it may be."""

    what: str
    plans: Sequence[LayerPlan]
    since: float
    seconds: float


class Watchdog:
    """Watches one rank of a run while the context is open; silent unless something is wrong."""

    def __init__(
        self, run_folder: Path, world: World, *, seconds: float, long_seconds: float
    ) -> None:
        """Make ready; entering the context begins the watch.

        Args:
            run_folder: where failures are written.
            world: this rank's place.
            seconds: how long a usual piece of work may take.
            long_seconds: how long one may take that is said to be long.
        """
        self._seconds, self._long_seconds = seconds, long_seconds
        self._file = FailureFile(run_folder, world.rank, world.size)
        self._prefix = f"[rank {world.rank}] " if world.size > 1 else ""
        self._once = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.begin("start", long=True)

    def begin(self, what: str, plans: Sequence[LayerPlan] = (), *, long: bool = False) -> None:
        """Say what the rank does from now on; the time it may take starts anew.

        Args:
            what: a few words for the report.
            plans: of the step's microbatches.
            long: whether it may take long: what compiles, validates or writes.
        """
        seconds = self._long_seconds if long else self._seconds
        self._doing = Doing(what, plans, time.monotonic(), seconds)

    def _watch(self) -> None:
        while True:
            doing = self._doing
            pause = min(MOST_SECONDS, max(LEAST_SECONDS, doing.seconds / LOOKS_PER_LIMIT))
            left = max(0.0, doing.since + doing.seconds - time.monotonic())
            # Set anew each time: it fires only if this thread does not come back here.
            faulthandler.dump_traceback_later(
                left + pause + 2 * WAIT_SECONDS, exit=True, file=self._file.file
            )
            if self._over.wait(pause):
                faulthandler.cancel_dump_traceback_later()
                return
            doing = self._doing
            if time.monotonic() - doing.since > doing.seconds:
                self._end(doing)

    def _end(self, doing: Doing) -> None:
        """Write the report and end the process, from under whatever it is stuck in."""
        with self._once:
            if self._over.is_set():  # the rank has just got on, or says itself what is wrong
                return
            reason = f"no progress for {doing.seconds:g} s in {doing.what}"
            try:
                self._file.write(reason, doing.what, doing.plans)
                where = f"{self._file.others(WAIT_SECONDS)}; stacks are in {self._file.path}"
                sys.stderr.write(f"{self._prefix}error: {reason}; {where}\n")
                sys.stderr.flush()
            finally:
                os._exit(LOST)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write down an error on its way out.

        Raises:
            ConnectionError: in its place, if it says that another rank did not answer.
        """
        with self._once:  # never given back to a watchdog that has begun its report
            self._over.set()
        self._thread.join()
        try:
            if isinstance(error, Exception):
                self._report(error)
        finally:
            self._file.close()

    def _report(self, error: Exception) -> None:
        doing = self._doing
        reason = f"{error}" or type(error).__name__
        self._file.write(reason, doing.what, doing.plans, error)
        if is_lost_rank(error):
            others = self._file.others(WAIT_SECONDS)
            raise ConnectionError(
                f"a rank did not answer in {doing.what}; {others}; stacks are in {self._file.path}"
            ) from error
