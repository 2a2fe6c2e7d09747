"""One command, run as a user runs it in a process of its own, and what may come of it."""

import faulthandler
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub.constants
import torch

from configs.command import run_command

Main = Callable[[list[str]], None]
"""The `main` of one of the repository's commands."""
SECONDS = 60
"""A case that takes longer hangs; the slowest takes three on a quiet core."""
BYTES = 3 * 2**30
"""A case may take so much address space beyond what a fork has."""
MOST_CHARACTERS = 1300
"""Of one error line: longer ones say too much, such as the whole of a file."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    status: int
    """Exit code, or the signal that ended it, negative."""
    out: str
    err: str


def run(main: Main, arguments: Sequence[str], stdin: bytes = b"") -> Outcome:
    """Run a command in a fork, in which a hang is ended by SIGALRM and memory is limited."""
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder, name) for name in ("in", "out", "err"))
        given.write_bytes(stdin)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _child(main, list(arguments), given, out, err)
        _, status = os.waitpid(pid, 0)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    return Outcome(os.waitstatus_to_exitcode(status), *texts)


def _child(main: Main, arguments: list[str], given: Path, out: Path, err: Path) -> None:
    code = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        _redirect(given, out, err)
        faulthandler.dump_traceback_later(SECONDS - 1)  # where it hangs
        _limit_memory()
        _go_offline()
        torch.set_num_threads(1)
        logging.root.handlers.clear()  # pytest's
        sys.argv = ["command", *arguments]
        code = 0
        run_command(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(given: Path, out: Path, err: Path) -> None:
    for number, file, flags in (
        (0, given, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(file, flags), number)
    # As Python opens them in a UTF-8 locale.
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="strict", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _go_offline() -> None:
    """Let no mistyped name become a question to the hub."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def judge(outcome: Outcome) -> bool:
    """Return whether a command succeeded; fail the test unless it did or said why in one line."""
    assert outcome.status != -signal.SIGALRM, f"it hung\n{outcome.err}"
    assert outcome.status >= 0, f"signal {-outcome.status} ended it\n{outcome.err}"
    assert "Traceback" not in outcome.err, outcome.err
    if outcome.status == 0:
        return True
    assert outcome.status == 1, f"exit code {outcome.status}\n{outcome.err}"
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, f"{len(errors)} lines say what is wrong\n{outcome.err}"
    assert lines[-1] == errors[0], f"the error is not the last line\n{outcome.err}"
    assert len(errors[0]) <= MOST_CHARACTERS, f"{len(errors[0])} characters: {errors[0]:.300}"
    assert len(errors[0]) > len("error: ") + 10, f"it says nothing: {errors[0]}"
    return False
