"""How an error line quotes what a user wrote: not the whole of it, if that is long."""

from typing import Any

MOST_OF_VALUE, MOST_OF_LINE = 120, 70
"""Characters."""


def quoted(value: Any) -> str:
    """Return a value as Python writes it, cut short."""
    return _cut(repr(value), MOST_OF_VALUE)


def one_line(text: str) -> str:
    """Return a text on one line, cut short."""
    return _cut(" ".join(text.split()), MOST_OF_LINE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
