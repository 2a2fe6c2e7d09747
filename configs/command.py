"""What every command does with its arguments and with its failures."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments and exit: 0, or 1 after saying what is wrong, or
    75 (EX_TEMPFAIL) if that is another rank that does not answer.

    An error that our own code raised is one line; anything else is a bug of ours or of a library
    and comes with its traceback. Under torchrun the line begins with the rank.
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
        if not (_is_ours(error) or _is_full(error)):
            sys.stderr.write("".join(f"{prefix}{line}\n" for line in _traceback(error)))
        message = " ".join(str(error).split())
        sys.stderr.write(f"{prefix}error: {message or type(error).__name__}\n")
        sys.stderr.flush()
        sys.exit(75 if isinstance(error, ConnectionError) and _is_ours(error) else 1)


def _is_ours(error: Exception) -> bool:
    """Whether the line that raised is in this repository and says what the user can do."""
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename).resolve() if frames else ROOT
    inside = where.is_relative_to(ROOT) and ".venv" not in where.parts
    return isinstance(error, ValueError | RuntimeError | ConnectionError) and inside


def _is_full(error: Exception) -> bool:
    """Whether the disk or a quota is full, which whatever library met it is not to blame for."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _traceback(error: Exception) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()
