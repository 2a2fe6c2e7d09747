"""Text as it becomes final, while tokens arrive that may be parts of a character."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from inference.generation import Round

GREEN, PLAIN = "\033[32m", "\033[0m"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers show for the first bytes of a character whose other bytes are to come."""


class TextStream:
    """Decodes a growing list of tokens, and says which text is new.

    All tokens are decoded each time, prompt included, because what a token looks like depends on
    those before it: leading spaces, characters of several tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt_ids)
        self._shown = len(self._decode(self._ids).rstrip(UNFINISHED))

    def add(self, tokens: Iterable[int]) -> str:
        """Return the text that these tokens complete; an unfinished character waits."""
        self._ids += tokens
        return self._new(self._decode(self._ids).rstrip(UNFINISHED))

    def finish(self) -> str:
        """Return what still waits, unfinished characters included."""
        return self._new(self._decode(self._ids))

    def _new(self, text: str) -> str:
        new = text[self._shown :]
        self._shown += len(new)
        return new


def text_of(
    decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int], tokens: Iterable[int]
) -> str:
    """Return the text of tokens as the continuation of a prompt."""
    stream = TextStream(decode, prompt_ids)
    return stream.add(tokens) + stream.finish()


def show(
    rounds: Iterable[Round], stream: TextStream, out: TextIO, *, colour: bool
) -> Iterator[Round]:
    """Pass rounds on, writing their text as it comes; accepted drafts are green if `colour`."""
    for each in rounds:
        drafts, own = stream.add(each.tokens[: each.accepted]), each.tokens[each.accepted :]
        out.write(f"{GREEN}{drafts}{PLAIN}" if colour and drafts else drafts)
        out.write(stream.add(own))
        out.flush()
        yield each
    out.write(stream.finish())
    out.flush()
