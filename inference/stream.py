"""Text as it becomes final, while tokens arrive that may be parts of a character."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from inference.generation import Round
from inference.stop import Decoder, first_stop, may_continue

GREEN, PLAIN = "\033[32m", "\033[0m"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers show for the first bytes of a character whose other bytes are to come."""


def settled(decode: Decoder, ids: Sequence[int]) -> str:
    """Return the text of ids without a last character that later tokens may finish."""
    return decode(ids).rstrip(UNFINISHED)


class TextStream:
    """Decodes a growing list of tokens, and says which text is new.

    All tokens are decoded each time, prompt included, because what a token looks like depends on
    those before it: leading spaces, characters of several tokens. The text ends before the first
    of the strings `stop`; what may begin one waits until it is known.
    """

    def __init__(
        self, decode: Decoder, prompt_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._decode = decode
        self._ids = list(prompt_ids)
        self._stop = stop
        self._start = self._shown = len(settled(decode, self._ids))

    def add(self, tokens: Iterable[int]) -> str:
        """Return the text that these tokens complete; an unfinished character waits."""
        self._ids += tokens
        text = settled(self._decode, self._ids)
        return self._new(text, len(text) - may_continue(text[self._start :], self._stop))

    def finish(self) -> str:
        """Return what still waits, unfinished characters included."""
        text = self._decode(self._ids)
        return self._new(text, len(text))

    def _new(self, text: str, end: int) -> str:
        stopped = first_stop(text, self._stop, self._start)
        new = text[self._shown : end if stopped is None else stopped]
        self._shown += len(new)
        return new


def text_of(
    decode: Decoder, prompt_ids: Sequence[int], tokens: Iterable[int], stop: Sequence[str] = ()
) -> str:
    """Return the text of tokens as the continuation of a prompt, up to the first stop string."""
    stream = TextStream(decode, prompt_ids, stop)
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
