"""A JSON file that somebody else wrote, read with one clear line for whatever may be in it."""

import json
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: if it is no JSON, or no object; one line with the file's name.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also when it is not text, or nested too deeply
        raise ValueError(f"{file} is not valid JSON ({error}): copy or download it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold an object, not {_kind(values)}: copy it again")
    return values


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
