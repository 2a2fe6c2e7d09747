"""What does not belong into a checkpoint: pickles, and tensors that its manifest does not know.

A pickle may name any function and have it called by whoever loads it. Nothing here ever loads one,
but one that lies in a checkpoint was put there by somebody, who may have changed more.
"""

from collections.abc import Iterable
from pathlib import Path

from parallel.manifest import DIGEST_NAME, FILE_NAME

ENDINGS = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".distcp", ".metadata"}
"""Of files that torch, DCP and Python pickle to."""
TENSORS = ".safetensors"
ARCHIVE = b"PK\x03\x04"
"""How what `torch.save` writes begins, an archive with a pickle in it."""
PROTOCOLS = tuple(bytes((0x80, number)) for number in range(2, 6))
"""How pickles of these protocols begin."""


def find_foreign(folder: Path, known: Iterable[str]) -> str | None:
    """Name a file that makes a checkpoint one not to be trusted; None if there is none.

    Args:
        folder: of the checkpoint.
        known: the files of its manifest, by their paths in the folder.

    Raises:
        OSError: if a file cannot be read.
    """
    belong = {*known, FILE_NAME, DIGEST_NAME}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if is_pickle(path):
            return (
                f"{path} is a pickle, which may run any code and does not belong into a "
                "checkpoint: none of it was loaded; find out who put it there, and remove it"
            )
        if path.suffix == TENSORS and str(path.relative_to(folder)) not in belong:
            return (
                f"{path} is not in {FILE_NAME}: somebody put it there; nothing was loaded; remove "
                "it or take another checkpoint"
            )
    return None


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes.

    Raises:
        OSError: if it cannot be read.
    """
    if path.suffix in ENDINGS or path.name in ENDINGS:
        return True
    with path.open("rb") as file:
        begin = file.read(9)
    if path.suffix == TENSORS and begin[8:] == b"{":
        return False  # 8 bytes of length may look like anything
    return begin.startswith((ARCHIVE, *PROTOCOLS))
