"""The settings of a sweep: a file of overrides, a line for a run or, with braces, for several."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

CHOICES = re.compile(r"\{([^{}:]*)\}")
"""The whole value of an override; a colon makes it a YAML mapping, which is one value."""


def read_settings(path: Path) -> list[list[str]]:
    """Return the overrides of each run, in the order of the lines.

    A line holds overrides apart by blanks, quoted as for a shell. A value in braces,
    `key={a,b}`, stands for as many runs as it names; several make all combinations, the last
    changing fastest. Empty lines and those that begin with # are left out.

    Raises:
        ValueError: naming the line.
    """
    if not path.is_file():
        raise ValueError(f"no file of settings {path}: give one a line, such as optim.lr=1e-3")
    settings: list[list[str]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            settings += _expand(f"{path}, line {number}", line)
    if not settings:
        raise ValueError(f"{path} holds no setting: give one a line, such as optim.lr=1e-3")
    return settings


def _expand(where: str, line: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    choices: list[list[str]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{where}: {word!r} is not an override: write key=value")
        if key == "run_folder":
            raise ValueError(
                f"{where}: each run has a folder of its own in the config's run_folder; change "
                "that on the command line"
            )
        several = CHOICES.fullmatch(value)
        values = several[1].split(",") if several else [value]
        choices.append([f"{key}={each.strip()}" for each in values])
    yield from map(list, itertools.product(*choices))


def folder_name(number: int, overrides: list[str]) -> str:
    """Return what to call a run: its number and, as far as a file's name may, its overrides."""
    said = re.sub(r"[^\w.=+-]+", "_", ",".join(overrides))
    return f"{number:03d}-{said}"[:100]
