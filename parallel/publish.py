"""How checkpoints come and go: by renaming folders, so that a crash splits nothing.

step_N             complete; `latest` names the one to go on from
step_N.tmp         being written
step_N.replaced    complete; the same step is being saved again in its place
step_N.deleted     being deleted
step_N.damaged     put aside by a run that went on from an older one; never deleted
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from parallel.manifest import FILE_NAME

LATEST = "latest"
"""The file that names the newest checkpoint."""
PARTIAL, REPLACED, DELETED, DAMAGED = ".tmp", ".replaced", ".deleted", ".damaged"
NAME = re.compile(r"step_\d+")
SPARE_BYTES = 2**20
"""For what a checkpoint holds beside tensors, and what a file system needs for itself."""

Spared = Callable[[Sequence[int]], Collection[int]]
"""From the steps of checkpoints that are to be deleted, to those that somebody still needs."""

logger = logging.getLogger(__name__)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run that were completed, the oldest first."""
    found = [p for p in folder.glob("step_*") if NAME.fullmatch(p.name)]
    return sorted((p for p in found if (p / FILE_NAME).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.split(".")[0].removeprefix("step_"))


def latest(checkpoints: Path) -> Path | None:
    """Return the checkpoint to go on from, or None if there is none yet.

    That is the one that the file `latest` names. If it was lost or damaged, or what it names is
    gone, the newest there is.
    """
    pointer = checkpoints / LATEST
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if NAME.fullmatch(name):
        # A crash while the same step was saved again leaves it under its other name.
        for folder in (checkpoints / name, checkpoints / f"{name}{REPLACED}"):
            if folder.is_dir():
                return folder
    complete = checkpoints_in(checkpoints)
    if complete:
        return complete[-1]
    return checkpoints / name if NAME.fullmatch(name) else None


def check_room(checkpoint: Path, needed: int) -> None:
    """Refuse to begin a save that cannot end: old checkpoints stay until the new one stands.

    Args:
        checkpoint: its folder, still empty.
        needed: bytes of the new checkpoint's tensors, over all ranks.

    Raises:
        OSError: with ENOSPC, saying how much is needed and free.
    """
    free = shutil.disk_usage(checkpoint).free
    if needed + SPARE_BYTES > free:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint needs {_size(needed + SPARE_BYTES)}, but {checkpoint.parent} has "
            f"{_size(free)} free: make room there, or lower checkpoint.keep_last",
        )


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1000:.0f} kB"


def publish(partial: Path, final: Path) -> None:
    """Give a complete folder its name, then point `latest` to it.

    Args:
        partial: all its files are on the disk.
        final: if it is there already, as after a resume from an earlier step, it stays until the
            new one is in its place.
    """
    for folder in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
        settle(folder)
    replaced = final.with_name(final.name + REPLACED)
    if final.exists():
        if replaced.exists():
            delete(replaced)
        final.rename(replaced)
    partial.rename(final)
    settle(final.parent)
    point_to(final)
    if replaced.exists():
        delete(replaced)
    logger.info("saved %s", final)


def point_to(checkpoint: Path) -> None:
    """Let `latest` name a checkpoint, in one step."""
    pointer = checkpoint.parent / LATEST
    new = pointer.with_name(f"{LATEST}{PARTIAL}")
    with new.open("w") as file:
        file.write(checkpoint.name + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(pointer)
    settle(checkpoint.parent)


def settle(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint, which first loses its name."""
    doomed = checkpoint.with_name(checkpoint.name.split(".")[0] + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)  # left by a crash
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def spare_none(steps: Sequence[int]) -> Collection[int]:
    """Say that no checkpoint is needed."""
    return ()


def forget(checkpoints: Path, keep_last: int, spared: Spared = spare_none) -> None:
    """Delete all but the newest `keep_last` checkpoints, that of `latest`, and those spared."""
    newest, old = latest(checkpoints), checkpoints_in(checkpoints)[:-keep_last]
    needed = spared([step_of(folder) for folder in old])
    for folder in old:
        if folder != newest and step_of(folder) not in needed:
            delete(folder)


def put_aside(damaged: Sequence[Path], good: Path) -> list[Path]:
    """Let `latest` name a good checkpoint; rename damaged ones, so that they are not in the way.

    Returns:
        Where the damaged ones are now.
    """
    point_to(good)
    return [_put_aside(folder) for folder in damaged]


def _put_aside(folder: Path) -> Path:
    first = folder.with_name(folder.name.split(".")[0] + DAMAGED)
    aside, number = first, 2
    while aside.exists():
        aside, number = first.with_name(f"{first.name}.{number}"), number + 1
    return folder.rename(aside)


def tidy(checkpoints: Path) -> None:
    """Put right what a crash left behind, and say so; nobody else may use the folder meanwhile.

    Raises:
        OSError: if something cannot be removed.
    """
    if not checkpoints.is_dir():
        return
    for folder in sorted(checkpoints.glob(f"step_*{REPLACED}")):
        final = folder.with_name(folder.name.removesuffix(REPLACED))
        if final.exists():
            delete(folder)
        else:
            folder.rename(final)
            logger.warning("%s is back: a crash had come between it and its successor", final)
    left = sorted(p for end in (PARTIAL, DELETED) for p in checkpoints.glob(f"step_*{end}"))
    for folder in left:
        shutil.rmtree(folder)
    if left:
        names = ", ".join(folder.name for folder in left)
        logger.warning("removed from %s what a crash had left: %s", checkpoints, names)
    newest, pointer = latest(checkpoints), checkpoints / LATEST
    if newest is None or not newest.is_dir():
        return
    if not pointer.is_file() or pointer.read_text(errors="replace").strip() != newest.name:
        point_to(newest)
        logger.warning("%s was lost or named nothing: it names %s now", pointer, newest.name)
