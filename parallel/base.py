"""Checkpoints of runs that leave weights as they are: they hold the rest, and name their base.

`model/base.json` says which model the frozen weights are from and what it is known by.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.fingerprint import fingerprint
from models.hf import stored_weights
from models.lora import LoraConfig
from models.weight_files import StoredTensor
from parallel.checkpoint import MODEL

BASE = "base.json"


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a run has started from and leaves as it is, but for what it trains."""

    source: str
    """Folder or hub id, as the run's config has it."""
    fingerprint: str
    """Of its weights."""
    lora: LoraConfig | None
    """The adapters beside its layers, if those are what is trained."""


def describe_base(source: str, lora: LoraConfig | None) -> Base:
    """Return what a checkpoint is to say of its base; reads some of every weight."""
    return Base(source, fingerprint(stored_weights(source)), lora)


def write_base(checkpoint: Path, base: Base) -> None:
    """Write it into a checkpoint."""
    (checkpoint / MODEL / BASE).write_text(json.dumps(asdict(base), indent=1))


def read_base(checkpoint: Path) -> Base | None:
    """Return the base of a checkpoint; None if it holds a whole model.

    Raises:
        RuntimeError: if the file is damaged.
    """
    path = checkpoint / MODEL / BASE
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lora = values["lora"]
        if lora is not None:
            lora = LoraConfig(**{**lora, "targets": tuple(lora["targets"])})
        return Base(str(values["source"]), str(values["fingerprint"]), lora)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{path} is damaged ({reason}): take another checkpoint") from None


def check_base(checkpoint: Path, now: Base) -> None:
    """Check that a checkpoint belongs to the base that a run goes on with.

    Raises:
        RuntimeError: if the base's weights are not those that the checkpoint was trained beside.
    """
    before = read_base(checkpoint)
    if before is not None and before.fingerprint != now.fingerprint:
        raise RuntimeError(_changed(checkpoint, before.source))


def weights_of_base(checkpoint: Path, base: Base) -> Mapping[str, StoredTensor]:
    """Return the weights of a checkpoint's base by name, to be read one by one.

    Raises:
        RuntimeError: if it is gone or has changed.
    """
    try:
        stored = stored_weights(base.source)
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"{checkpoint} holds only what was trained beside {base.source}, which is not there "
            f"({error})"
        ) from None
    if fingerprint(stored) != base.fingerprint:
        raise RuntimeError(_changed(checkpoint, base.source))
    return stored


def _changed(checkpoint: Path, source: str) -> str:
    return (
        f"{checkpoint} was trained beside {source}, whose weights are not what they were: put the "
        "old ones back"
    )
