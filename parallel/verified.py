"""Checkpoints checked byte by byte before anything is read from them.

Each rank reads its share of the files and all learn what any has found, so that all go on or all
raise the same line.
"""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from parallel.checkpoint import read_state
from parallel.checksum import ALGORITHM, read_back
from parallel.foreign import find_foreign
from parallel.manifest import REMEDY, Manifest, read_manifest
from parallel.publish import checkpoints_in, put_aside, step_of
from parallel.together import all_ranks, together

LOST = {errno.ENOENT, errno.EIO, errno.ENODATA}
"""Errors that say that a file is gone or cannot be read any more, and nothing of this machine."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a checkpoint."""

    text: str
    is_damage: bool
    """Whether another checkpoint may be better; else somebody has to look first."""


def verify(folder: Path, parts: Sequence[str] | None = None) -> None:
    """Check a checkpoint's files; every rank calls it.

    Args:
        folder: of the checkpoint.
        parts: subfolders that will be read, beside the files that are in none; None: all.

    Raises:
        RuntimeError: on all ranks, naming the file, what is wrong, and an older checkpoint that is
            good, if there is one.
    """
    fault = find_fault(folder, parts)
    if fault is None:
        return
    if fault.is_damage:
        good = next((p for p in _before(folder) if find_fault(p, parts) is None), None)
        if good is not None:
            raise RuntimeError(f"{fault.text}; {good} is good: take that")
    raise RuntimeError(fault.text)


def good_checkpoint(newest: Path, *, strict: bool = False) -> Path:
    """Return the checkpoint to go on from: the newest, or the first before it that is good.

    Damaged ones that are newer are renamed, `latest` names what is returned, and a warning says so.
    Every rank of a group calls it.

    Args:
        newest: the checkpoint that `latest` names.
        strict: take no other.

    Raises:
        RuntimeError: on all ranks, if none is good, or something else is wrong with one.
    """
    if strict:
        verify(newest)
        return newest
    faults: list[Fault] = []
    candidates = [newest, *_before(newest)]
    for checkpoint in candidates:
        fault = find_fault(checkpoint)
        if fault is None:
            break
        faults.append(fault)
        if not fault.is_damage:
            raise RuntimeError(fault.text)
    else:
        raise RuntimeError(
            f"no checkpoint in {newest.parent} is good, and the run does not begin anew by itself: "
            f"{'; '.join(fault.text for fault in faults)}"
        )
    if faults:
        _go_back(candidates[: len(faults)], checkpoint, faults)
    return checkpoint


def _go_back(damaged: Sequence[Path], good: Path, faults: Sequence[Fault]) -> None:
    def rename() -> None:
        if dist.get_rank() > 0:
            return
        for path, fault in zip(put_aside(damaged, good), faults, strict=True):
            logger.warning("%s; it is kept as %s", fault.text, path.name)
        lost = step_of(damaged[0]) - step_of(good)
        logger.warning("the run goes on from %s, %d steps before that", good, lost)

    together(rename, f"going back to {good}")


def _before(checkpoint: Path) -> list[Path]:
    """Return the older checkpoints beside one, the newest first, as rank 0 sees them."""
    older = [p for p in checkpoints_in(checkpoint.parent) if step_of(p) < step_of(checkpoint)]
    names = all_ranks([path.name for path in reversed(older)])[0]
    return [checkpoint.parent / name for name in names]


def find_fault(folder: Path, parts: Sequence[str] | None = None) -> Fault | None:
    """Return what any rank finds wrong with a checkpoint, the same on all; None: it is good."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    fault = None
    try:
        fault = _fault(folder, parts, rank, size)
    except RuntimeError as error:
        fault = Fault(str(error), is_damage=True)
    except OSError as error:
        text = f"{error.filename or folder} cannot be read: {error.strerror or error}; {REMEDY}"
        fault = Fault(text, is_damage=error.errno in LOST)
    found = [each for each in all_ranks(fault) if each is not None]
    # What somebody has to look at comes before what an older checkpoint would put right.
    return next((each for each in found if not each.is_damage), found[0] if found else None)


def _fault(folder: Path, parts: Sequence[str] | None, rank: int, size: int) -> Fault | None:
    """Look at this rank's share.

    Raises:
        RuntimeError: naming a file that is damaged.
        OSError: if one cannot be read.
    """
    manifest: Manifest | None
    try:
        manifest, damage = read_manifest(folder), None
    except RuntimeError as error:
        manifest, damage = None, error
    if rank == 0 and folder.is_dir():
        foreign = find_foreign(folder, manifest.sizes if manifest else {})
        if foreign is not None and (manifest or "is a pickle" in foreign):
            return Fault(foreign, is_damage=False)
    if damage is not None:
        raise damage
    assert manifest is not None, "or there is damage"
    read_state(folder)
    if rank == 0 and not manifest.checksums:
        logger.warning("%s has no checksums, being old: only sizes were checked", folder)
    for name in _share(manifest, parts, rank, size):
        if read_back(folder / name).checksum != manifest.checksums[name]:
            raise RuntimeError(
                f"{folder / name} is damaged: its bytes do not have the {ALGORITHM} that they were "
                f"written with; {REMEDY}"
            )
    return None


def _share(manifest: Manifest, parts: Sequence[str] | None, rank: int, size: int) -> list[str]:
    """Deal files to ranks, each to the one that has the least to read so far."""
    loads, mine = [0] * size, []
    for name, count in sorted(manifest.sizes.items(), key=lambda item: (-item[1], item[0])):
        top = name.split("/")[0]
        if name not in manifest.checksums or not (parts is None or top == name or top in parts):
            continue
        least = loads.index(min(loads))
        loads[least] += count
        if least == rank:
            mine.append(name)
    return mine
