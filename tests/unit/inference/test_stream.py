import io
from collections.abc import Sequence

import pytest

from inference.generation import Round
from inference.stream import GREEN, PLAIN, TextStream, show, text_of

TEXTS = ["plain", "naïve café", "日本語 and 🙂🙂", "tab\tand\nnewline ", "🙂"]


def _decode(ids: Sequence[int]) -> str:
    """A tokenizer of bytes: most characters beyond ASCII are several tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


def _strip_first_space(ids: Sequence[int]) -> str:
    """As SentencePiece with a dummy prefix: the same token looks different at the start."""
    return _decode(ids).removeprefix(" ")


@pytest.mark.parametrize("text", TEXTS)
def test_characters_wait_until_they_are_whole(text: str) -> None:
    stream, ids = TextStream(_decode, list(b"> ")), list(text.encode())
    pieces = [stream.add([token]) for token in ids] + [stream.finish()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_is_never_finished_is_shown_at_the_end() -> None:
    stream = TextStream(_decode, [])
    assert stream.add("é!".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_character_are_shown_once_something_follows() -> None:
    stream = TextStream(_decode, [])
    assert (stream.add([0xFF]), stream.add(b"a"), stream.finish()) == ("", "\ufffda", "")


def test_a_prompt_that_ends_inside_a_character_is_completed() -> None:
    smile = "🙂".encode()
    assert TextStream(_decode, smile[:2]).add(smile[2:]) == "🙂"


def test_the_space_between_prompt_and_text_is_kept() -> None:
    assert text_of(_strip_first_space, b" a", b" b") == " b"


@pytest.mark.parametrize("size", [1, 2, 3, 30])
@pytest.mark.parametrize(
    ("stop", "shown"),
    [(["END"], "an EN, E "), (["E", "xyz"], "an "), (["never"], None), ([], None)],
)
def test_text_ends_before_the_first_stop_string(
    stop: list[str], shown: str | None, size: int
) -> None:
    text = "an EN, E END. Enough"
    stream, pieces = TextStream(_decode, b"END> ", stop), list[str]()
    for start in range(0, len(text), size):
        pieces.append(stream.add(text[start : start + size].encode()))
    assert "".join([*pieces, stream.finish()]) == (text if shown is None else shown)
    assert text_of(_decode, b"END> ", text.encode(), stop) == (text if shown is None else shown)


def test_what_may_begin_a_stop_string_waits_for_the_next_token() -> None:
    stream = TextStream(_decode, [], ["END"])
    assert [stream.add([token]) for token in b"aENbE"] == ["a", "", "", "ENb", ""]
    assert stream.finish() == "E"


def _shown(colour: bool) -> str:
    out = io.StringIO()
    rounds = [Round(list(b"abc"), drafted=3, accepted=2), Round(list(b"d"), drafted=2, accepted=0)]
    assert list(show(rounds, TextStream(_decode, []), out, colour=colour)) == rounds
    return out.getvalue()


def test_accepted_drafts_are_coloured_and_the_verifiers_tokens_are_not() -> None:
    assert _shown(colour=True) == f"{GREEN}ab{PLAIN}cd"
    assert _shown(colour=False) == "abcd"


def test_text_is_written_before_the_next_round_is_asked_for() -> None:
    out = io.StringIO()
    for each in show(
        (Round(list(word)) for word in (b"one ", b"two")),
        TextStream(_decode, []),
        out,
        colour=False,
    ):
        assert out.getvalue().endswith(_decode(each.tokens))
