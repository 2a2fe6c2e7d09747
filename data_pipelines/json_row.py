"""A line of a JSONL file as a row, and text in one; or one line that says what is wrong with it."""

import json
from typing import Any


def json_row(line: str, where: str, remedy: str = "write one object a line") -> dict[str, Any]:
    """Return the object that a line holds.

    Args:
        line: of the file.
        where: words for its place.
        remedy: what to do where it is no JSON.

    Raises:
        ValueError: naming the place, if it is no object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): {remedy}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object but a {type(row).__name__}")
    return row


def checked_text(value: Any, what: str, where: str) -> str:
    """Return a value, which has to be text that can be encoded.

    Args:
        value: from a row.
        what: the name of its column.
        where: words for the row's place.

    Raises:
        ValueError: naming the place.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} must be a text, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {what} is not Unicode text: {error}") from None
    return value
