"""A checkpoint written in another format: all of it, or nothing."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parallel.convert.beside import complete
from parallel.convert.contents import Contents
from parallel.convert.hugging_face import write_hugging_face
from parallel.convert.read import Format, fit, read_contents
from parallel.convert.sharded import write_run
from parallel.convert.universal import write_universal

WRITERS: dict[Format, Callable[[Contents, Path], None]] = {
    "dcp": write_run,
    "zero": write_universal,
    "hf": write_hugging_face,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What to write, and where to find what the source does not have."""

    to: Format
    """Format of the new folder."""
    config: str | None = None
    """Folder with the model's config.json, for a source that has none: DeepSpeed's have none."""
    tokenizer: str | None = None
    """Folder with the tokenizer's files, for a source that has none."""


def convert(source: Path, target: Path, config: ConvertConfig) -> None:
    """Write a checkpoint in another format, tensor by tensor; all of it, or nothing.

    Raises:
        ValueError: if the target exists, the source is none that can be read, or something that the
            format needs is not there.
        RuntimeError: if the source is a checkpoint of ours that is damaged.
    """
    if target.exists():
        raise ValueError(f"{target} exists and was left as it is: give a new folder")
    kind, found = read_contents(source)
    beside = complete(found.beside, config=config.config, tokenizer=config.tokenizer)
    contents = fit(replace(found, beside=beside))
    _check(kind, contents, config.to)
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by a conversion that was killed
    partial.mkdir(parents=True)
    try:
        WRITERS[config.to](contents, partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check(kind: Format, contents: Contents, to: Format) -> None:
    """Refuse what cannot be, and say what will be missing."""
    origin = contents.origin
    if kind == to and (kind != "zero" or (origin / "zero").is_dir()):
        raise ValueError(f"{origin} is in this format already: choose another one than to={to}")
    if to != "zero" and contents.beside.config is None:
        raise ValueError(
            f"{origin} has no config.json, so the model is not known: add config=FOLDER, a folder "
            "with the model's"
        )
    if not contents.optimizer and to != "hf":
        then = "they begin as zeros" if to == "zero" else "decode from it, or train with init_from"
        logger.warning("%s has no moments of Adam: %s", origin, then)
    if to != "zero" and not contents.beside.tokenizer:
        logger.warning(
            "%s has no tokenizer, without which nothing can be generated: add tokenizer=FOLDER, or "
            "put its files there later",
            origin,
        )
