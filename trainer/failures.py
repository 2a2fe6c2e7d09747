"""What a rank writes before it dies: `RUN/failures/rank-N.txt`, and one line on stderr.

Each rank has the file open while it trains, so that Python's fault handler can write to it even
where no Python code runs any more. A rank that ends well takes its empty file away again.
"""

import faulthandler
import logging
import os
import socket
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from models.plan import LayerPlan

logger = logging.getLogger(__name__)

FOLDER = "failures"
"""In the run folder."""
REASON = "reason: "
"""Begins the line of a report that others quote."""
LOST = 75
"""The exit code when ranks wait for one another in vain (EX_TEMPFAIL: starting again may help)."""
ROOM_BYTES = 1 << 15
"""Kept free for a report, in a file that gives way to it: a disk that fills up ends runs, too."""
WAIT_SECONDS = 5.0
"""How long a dying rank waits for the reports of the others, to say which are missing."""


class FailureFile:
    """The open file of one rank."""

    def __init__(self, run_folder: Path, rank: int, size: int) -> None:
        """Open an empty file; what an earlier process wrote is kept beside it, the last time's."""
        self._folder, self._rank, self._size = run_folder / FOLDER, rank, size
        self._folder.mkdir(parents=True, exist_ok=True)
        self.path = _path(self._folder, rank)
        if self.path.is_file() and self.path.stat().st_size:
            self.path.replace(self.path.with_suffix(".previous.txt"))
        self.file = self.path.open("wb", buffering=0)
        self._room = self.path.with_suffix(".room")
        with suppress(OSError):
            self._room.write_bytes(os.urandom(ROOM_BYTES))  # zeros might take no room
        self._had_handler = faulthandler.is_enabled()
        faulthandler.enable(self.file)  # an abort in C++ writes its stacks here

    def write(
        self,
        reason: str,
        doing: str,
        plans: Sequence[LayerPlan],
        error: BaseException | None = None,
    ) -> None:
        """Append a report: the reason, what the rank was doing, its last plans, all stacks.

        Where it cannot be written, that is only logged: the reason matters more.
        """
        now, host = time.strftime("%Y-%m-%d %H:%M:%S"), socket.gethostname()
        lines = [
            f"==== {now} rank {self._rank} of {self._size} on {host}, process {os.getpid()}",
            f"{REASON}{' '.join(reason.split())}",
            f"doing: {doing}",
            *(
                f"plan of microbatch {i} of this rank: {p}"
                for i, p in enumerate(map(plan_line, plans))
            ),
        ]
        if error is not None:
            lines += ["error:", *"".join(traceback.format_exception(error)).splitlines()]
        with suppress(OSError):
            self._room.unlink()
        if self._append("\n".join([*lines, "stacks of all threads:", ""])):
            faulthandler.dump_traceback(self.file, all_threads=True)
            with suppress(OSError):
                os.fsync(self.file.fileno())

    def _append(self, text: str) -> bool:
        """Write at once; return whether it worked."""
        try:
            self.file.write(text.encode())
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)
            return False
        return True

    def others(self, wait_seconds: float) -> str:
        """Say in a clause which ranks left no report, and quote the first if it is another's.

        Waits for the reports that are missing. The clause is appended to this rank's report too.
        """
        deadline = time.monotonic() + wait_seconds
        while (missing := self._missing()) and time.monotonic() < deadline:
            time.sleep(0.1)
        parts = [] if self._size > 1 else ["there is no other rank"]
        if missing:
            names = "rank " if len(missing) == 1 else "ranks "
            names += ", ".join(map(str, missing))
            parts.append(f"{names} left no report: stopped, killed or stuck beyond Python")
        first = self._earliest()
        if first is not None:
            parts.append(first)
        clause = "; ".join(parts) or "every other rank left a report, none before this one"
        with suppress(OSError):
            reported = self.path.stat().st_mtime_ns
            self._append(f"others: {clause}\n")
            os.utime(self.path, ns=(reported, reported))  # the order of the reports stays readable
        return clause

    def _reports(self) -> dict[int, int]:
        """Return for each rank that has reported when it did, by the file system's clock."""
        files = {rank: _path(self._folder, rank) for rank in range(self._size)}
        states = {rank: path.stat() for rank, path in files.items() if path.is_file()}
        return {rank: state.st_mtime_ns for rank, state in states.items() if state.st_size}

    def _missing(self) -> list[int]:
        reports = self._reports()
        return [r for r in range(self._size) if r != self._rank and r not in reports]

    def _earliest(self) -> str | None:
        """Quote the rank that reported first, if that was not this one."""
        reports = self._reports()
        rank = min(reports, key=lambda r: reports[r], default=self._rank)
        if rank == self._rank:
            return None
        lines = _path(self._folder, rank).read_text(errors="replace").splitlines()
        reasons = [line.removeprefix(REASON) for line in lines if line.startswith(REASON)]
        return f"rank {rank} failed first: {reasons[0]}" if reasons else None

    def close(self) -> None:
        """Close the file, and take it away if nothing was ever written to it."""
        faulthandler.disable()
        if self._had_handler:
            faulthandler.enable()
        self.file.close()
        with suppress(OSError):  # all of it may be gone, or others' files are in the folder
            self._room.unlink(missing_ok=True)
            if not self.path.stat().st_size:
                self.path.unlink()
                self._folder.rmdir()


def plan_line(plan: LayerPlan) -> str:
    """Return a plan as one line: the layers in order with what they run on, then the exits."""
    visits = (
        f"{layer}" if what == "all" else f"{layer}({what})" for layer, _, what in plan.signature
    )
    return f"layers {' '.join(visits)}; exits {' '.join(map(str, plan.exits))}"


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.txt"
