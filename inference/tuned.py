"""The settings that `tune` found for a model: a JSON file beside it, which `generate` looks for."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inference.identity import Identity, identify
from inference.opening import device_name
from inference.parse import parse_generate
from parallel.checkpoint import CHECKPOINTS, find_checkpoint

logger = logging.getLogger(__name__)

FILE = "decoding.json"
KEYS = ("strategy", "exit_layer", "num_speculations")
"""What the file may set; all of them are keys of generate."""
PLAIN = "strategy=autoregressive"
CHOSEN = ("config", "strategy", "exit_layer", "skip_attn", "skip_ffn", "skip_layers")
"""Who names one of these has chosen, and is not given what was tuned."""


def tuned_file(source: str) -> Path | None:
    """Return where a model's tuned settings belong: a run's folder or its own; None for a hub id.

    Raises:
        RuntimeError: if a run has saved nothing yet.
    """
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is not None:
        in_run = checkpoint.parent.name == CHECKPOINTS
        return (checkpoint.parent.parent if in_run else checkpoint) / FILE
    return Path(source) / FILE if Path(source).is_dir() else None


def write_tuned(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file whole, in the place of an old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".json.tmp")
    with new.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def with_tuned(
    source: str,
    overrides: Sequence[str],
    place: Callable[[str], torch.device],
    *,
    ranks: int = 1,
) -> list[str]:
    """Return the overrides of `generate`, with what was tuned before them if nobody chose.

    `tuned=FILE` names the file; else it is the model's, if it has one. What was tuned for other
    weights, another precision or device is not used, and one line says so.

    Args:
        source: the model.
        overrides: as the user wrote them.
        place: from the key `device` to the device.
        ranks: how many processes decode; `tune` measures one.

    Raises:
        ValueError: if the file cannot be read, or a named one is for something else.
    """
    named = [each.removeprefix("tuned=") for each in overrides if each.startswith("tuned=")]
    rest = [each for each in overrides if not each.startswith("tuned=")]
    keys = {each.partition("=")[0] for each in rest}
    chosen = sorted(keys & set(CHOSEN))
    if named and chosen:
        raise ValueError(f"tuned={named[-1]} would be ignored: {chosen[0]} is given, too")
    path = Path(named[-1]) if named else tuned_file(source)
    if chosen or path is None or not (named or path.is_file()):
        return rest
    content = read_tuned(path)
    where = parse_generate(
        [each for each in rest if each.startswith(("dtype=", "weights=", "device="))]
    )
    identity = identify(source, dtype=where.precision, device=device_name(place(where.device)))
    difference = content["identity"].difference(identity)
    if ranks > 1:
        difference = f"one process, not {ranks}"
    if difference is not None:
        message = f"{path} was tuned for {difference}"
        if named:
            raise ValueError(f"{message}: run tune again, or give strategy=... instead")
        logger.info("%s: not used; run tune again", message)
        return rest
    settings = [f"{name}={value}" for name, value in content["decoding"].items()]
    remedy = "" if settings == [PLAIN] else f" ({PLAIN} decodes plainly)"
    logger.info("%s, as tuned: %s%s", path, " ".join(settings), remedy)
    return [*settings, *rest]


def tuned_for(source: str) -> dict[str, Any] | None:
    """Return what was tuned for a model, as `read_tuned`; None if nothing was.

    What was tuned for other weights is not returned, and one line says so.

    Raises:
        ValueError: if the file beside the model cannot be read.
    """
    path = tuned_file(source)
    if path is None or not path.is_file():
        return None
    content = read_tuned(path)
    then = content["identity"]
    difference = then.difference(identify(source, dtype=then.dtype, device=then.device))
    if difference is None:
        return content
    logger.warning("%s was tuned for %s: not used; run tune again", path, difference)
    return None


def carry_tuned(content: Mapping[str, Any], folder: Path) -> None:
    """Write what was tuned beside an export of the same weights.

    Args:
        content: as `read_tuned` returns it.
        folder: in Hugging Face form, on this disk.
    """
    then = content["identity"]
    identity = identify(str(folder), dtype=then.dtype, device=then.device)
    write_tuned(folder / FILE, {**content, "identity": asdict(identity)})


def read_tuned(path: Path) -> dict[str, Any]:
    """Return the content of a file that `tune` wrote, its identity as an `Identity`.

    Raises:
        ValueError: if there is no such file, or it is not one.
    """
    if not path.is_file():
        raise ValueError(f"tuned={path}: there is no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity = Identity(**content["identity"])
        settings = {name: value for name, value in content["decoding"].items() if name in KEYS}
        if settings != content["decoding"]:
            raise KeyError("decoding")
        _ = parse_generate([f"{name}={value}" for name, value in settings.items()])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is not what tune writes: run tune again, or remove it") from None
    return {**content, "identity": identity}
