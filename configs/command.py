"""What every command does with its arguments and with its failures."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_FAULTS = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What the system says of a file that a user can do something about, wherever it is opened."""
FULL = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}
"""What it says of a full disk or quota; not always with the file, which may be closed by then."""
LONGEST = 1200
"""Characters of an error line: it may name a file or value that is longer."""


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments and exit: 0, or 1 after saying what is wrong, or
    75 (EX_TEMPFAIL) if that is another rank that does not answer.

    An error that our own code raised is one line, and so is a file that cannot be opened; anything
    else is a bug of ours or of a library and comes with its traceback. Under torchrun the line
    begins with the rank.
    """
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"{prefix}%(message)s",
        stream=sys.stderr,
    )
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        refused = _refused_file(error)
        if not _is_ours(error) and refused is None:
            sys.stderr.write("".join(f"{prefix}{line}\n" for line in _traceback(error)))
        message = _shortened(" ".join((refused or str(error)).split()))
        sys.stderr.write(f"{prefix}error: {message or type(error).__name__}\n")
        sys.stderr.flush()
        sys.exit(75 if isinstance(error, ConnectionError) and _is_ours(error) else 1)


def _refused_file(error: Exception) -> str | None:
    """Say which file the system refused and why, if that says all; else None."""
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}: make room"
    if error.errno not in FILE_FAULTS or not error.filename:
        return None
    return f"{error.filename}: {error.strerror}"


def _shortened(message: str) -> str:
    """Leave out the middle of a message that says too much: its end may be the remedy."""
    if len(message) <= LONGEST:
        return message
    half = LONGEST // 2
    return f"{message[:half]} ... {message[-half:]}"


def _is_ours(error: Exception) -> bool:
    """Whether the line that raised is in this repository and says what the user can do."""
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename).resolve() if frames else ROOT
    inside = where.is_relative_to(ROOT) and ".venv" not in where.parts
    return isinstance(error, ValueError | RuntimeError | ConnectionError) and inside


def _traceback(error: Exception) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()
