"""What stood in a folder before, and whether it stands there still."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN = frozenset({"lock"})
"""Files that a command may touch in a run although it refuses to go on with it."""


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file, link and folder below one, by its path."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "special"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lost(folder: Path, before: dict[str, str]) -> set[str]:
    """Return what was in a folder and is not there any more as it was."""
    now = contents(folder)
    return {name for name in before if name not in OWN and before[name] != now.get(name)}


@contextmanager
def nothing_lost(*folders: Path) -> Iterator[None]:
    """Fail the test if, inside, something below the folders is changed or deleted."""
    before = {folder: contents(folder) for folder in folders}
    yield
    for folder, old in before.items():
        changed = sorted(lost(folder, old))
        assert not changed, f"changed or deleted in {folder}: {changed}"
