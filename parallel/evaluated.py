"""Which checkpoints of a run have been evaluated: `RUN/evaluations.jsonl`, a line for each.

Lines are only ever appended, by one process at a time. A checkpoint is known by its step: one that
has a line is not evaluated again.
"""

import fcntl
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parallel.json_lines import append_line

FILE_NAME = "evaluations.jsonl"
LOCK_SECONDS = 10.0
"""How long to wait for another process to let go of the file: one that is just ending."""


def outstanding(
    run_folder: Path, steps: Iterable[int], *, every: int | None, last: int
) -> list[int]:
    """Return which checkpoints are to be evaluated and have not been, the oldest first.

    Args:
        run_folder: of the run.
        steps: of the checkpoints that there are.
        every: steps that are multiples of it are due; None: all.
        last: the run's last step, which is due in any case.
    """
    done = evaluated_steps(run_folder)
    due = (s for s in steps if every is None or s % every == 0 or s == last)
    return sorted(s for s in due if s not in done)


def evaluated_steps(run_folder: Path) -> set[int]:
    """Return the steps that have a line; what is no whole line of a step is passed over."""
    path = run_folder / FILE_NAME
    rows = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return {step for step in map(_step, rows) if step is not None}


def _step(row: bytes) -> int | None:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class EvaluationLog:
    """The file, open for one process to append to."""

    def __init__(self, run_folder: Path) -> None:
        """Open it, and cut off what a killed process left of a line.

        Raises:
            RuntimeError: if another process has it open.
        """
        self.path = run_folder / FILE_NAME
        self._file = self.path.open("ab+", buffering=0)
        self._lock(run_folder)
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def _lock(self, run_folder: Path) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise RuntimeError(
                        f"another process is evaluating {run_folder}: leave that to it, or end it"
                    ) from None
                time.sleep(0.2)

    def add(self, step: int, found: Mapping[str, Any]) -> None:
        """Append the line of a step, in one write.

        Raises:
            OSError: if there is no room for it; nothing of it remains then.
        """
        append_line(self._file, self.path, {"step": step, **found})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
