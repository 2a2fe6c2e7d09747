"""Appending to a file of JSON lines, so that a reader finds whole lines whatever happens."""

import errno
import json
import math
import os
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any


def append_line(file: RawIOBase, path: Path, line: Mapping[str, Any]) -> None:
    """Append one line in one write: a process that is killed tears at most its last line.

    Args:
        file: opened for appending, unbuffered.
        path: of the file, for the error.
        line: of what JSON can hold; a number that is not finite becomes null.

    Raises:
        OSError: if the disk has no room for all of it; nothing of it remains then.
    """
    row = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
    before = file.seek(0, os.SEEK_END)
    if file.write(row) != len(row):  # a disk may fill in the middle of a line
        file.truncate(before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
