"""From the words of a command line to the configs of a command."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from configs.load import load
from inference.config import GenerateConfig

T = TypeVar("T")


def parse_generate(overrides: Sequence[str]) -> GenerateConfig:
    """Return the config of `generate`: a file, if one is named, changed by the other overrides.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    files = [a.removeprefix("config=") for a in overrides if a.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"config is given {len(files)} times: give one file")
    keys = [a for a in overrides if not a.startswith("config=")]
    return load(GenerateConfig, files[0] if files else None, keys)


def parse_with_decoding(
    cls: type[T], overrides: Sequence[str], *, implied: Sequence[str] = ()
) -> tuple[T, GenerateConfig]:
    """Return a command's own config, and that of the decoding it is about, from one line of keys.

    Keys that are not the command's are those of `generate`, which is also told the prompts, and to
    write JSON, as a batch needs.

    Args:
        cls: the command's dataclass.
        overrides: as the user wrote them.
        implied: more overrides for `generate`, that follow from the command.

    Raises:
        ValueError: if a key is unknown to both, or a value does not fit.
    """
    own = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    known = [*own, *(field.name for field in fields(GenerateConfig)), "config"]
    mine, rest = list[str](), list[str]()
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in known and "=" in override:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{override}: unknown key {key}; {remedy}")
        (mine if key in own else rest).append(override)
    named = [each for each in overrides if each.startswith("prompts=")]
    told = [*rest, *named[-1:], "output=json", *implied]
    config, decoding = load(cls, None, mine), parse_generate(told)
    if decoding.ranks == "data":
        raise ValueError("ranks=data: measuring works in one process; leave it out")
    return config, decoding
