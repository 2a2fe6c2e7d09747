"""The CSV file of a sweep: read to go on, written whole each time so that it is never torn."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

SAME = ("model", "weights", "dtype", "device", "prompts", "samples", "settings")
"""What rows of one file have in common."""
KEY = ("exit_layer", "num_speculations")
MEASURED = (
    "acceptance",
    "tokens",
    "tokens_per_second",
    "autoregressive_tokens_per_second",
    "speedup",
    "speedup_low",
    "speedup_high",
    "seconds_to_first_token",
    "same_output",
)
COLUMNS = (*KEY, *MEASURED, *SAME)

Row = Mapping[str, str]


def read_rows(path: Path, same: Mapping[str, str]) -> list[Row]:
    """Return the rows that a file has; none if there is no file yet.

    Args:
        path: the file.
        same: what this sweep's rows have in common, by `SAME`.

    Raises:
        ValueError: if it is no sweep, or one of another model, prompts or settings.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"to={path} is not a sweep's file: name another one")
        found: list[Row] = list(rows)
    for number, row in enumerate(found, 1):
        for name in SAME:
            if row[name] != same[name]:
                raise ValueError(
                    f"to={path}, row {number}: {name} was {row[name]!r}, now it is {same[name]!r}: "
                    "rows cannot be compared; name another file"
                )
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the file anew, in the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".csv.tmp")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
