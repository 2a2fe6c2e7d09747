"""Strings that end a text: what they must be, and where a text has one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decoder = Callable[[Sequence[int]], str]
"""From token ids to text."""


@dataclass(frozen=True, slots=True, eq=False)
class StopStrings:
    """A sequence ends with the token that completes the first of these in its new text."""

    strings: tuple[str, ...]
    decode: Decoder

    def __post_init__(self) -> None:
        check_stop(self.strings)


def check_stop(strings: Sequence[str]) -> None:
    """Refuse an empty string.

    Raises:
        ValueError: if there is one.
    """
    if "" in strings:
        raise ValueError(
            f"stop={list(strings)} has an empty string, which every text contains: leave it out"
        )


def first_stop(text: str, strings: Sequence[str], start: int = 0) -> int | None:
    """Return where the first of the strings begins in text[start:], as an index of text."""
    places = (text.find(string, start) for string in strings)
    return min((place for place in places if place >= 0), default=None)


def may_continue(text: str, strings: Sequence[str]) -> int:
    """Return how many characters at the end of a text may turn out to begin one of the strings."""
    lengths = (n for string in strings for n in range(1, len(string)) if text.endswith(string[:n]))
    return max(lengths, default=0)
