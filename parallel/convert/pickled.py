"""DeepSpeed's pickles, read without running what is in them and without reading their tensors.

A pickle may name any function and have it called. Here it may name what torch allows for data, and
the few classes below, for each of which a stand-in is made that does nothing: DeepSpeed is not
imported.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch


class _Plain:
    """Stands for a class whose objects are read for their attributes, if at all."""


class Fragment(_Plain):
    """Where a parameter lies in a flat partition: `deepspeed.utils.tensor_fragment`'s."""

    start: int
    """First element."""
    numel: int
    """Elements."""


class _Member:
    """Stands for ZeRO's enumeration of stages: made from a number, or looked up by a name."""

    def __init__(self, value: object = None) -> None:
        pass


def _look_up(owner: object, name: str) -> _Member:
    """Stand for `getattr`, by which Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""
    if owner is not _Member:
        raise pickle.UnpicklingError("Unsupported global: GLOBAL getattr")
    return _Member()


STAND_INS: list[Any] = [
    (_Member, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Plain, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Plain, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (Fragment, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_look_up, "__builtin__.getattr"),
    (_look_up, "builtins.getattr"),
]
"""What may be in DeepSpeed's checkpoints beside tensors and plain data, and what stands for it."""


def load_pickled(file: Path) -> Any:
    """Return the content of a file that `torch.save` wrote; its tensors stay on the disk.

    Raises:
        ValueError: if it is missing, damaged, or holds more than data.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing: copy the whole checkpoint")
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "something"
        raise ValueError(
            f"{file} holds {what}, which is not data that can be read without running code: save "
            "the checkpoint again without it (client_state is where such things come from)"
        ) from None
    except Exception as error:  # a damaged file may make the reader raise anything
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"{file} cannot be read ({reason}): copy it or save it again") from None
