from collections.abc import Callable, Sequence

import pytest

from inference.batch import BatchSettings, decode_batch
from inference.early_exit import early_exit
from inference.ending import Ending, end_round
from inference.generate import autoregressive
from inference.generation import Generation, Round, Settings
from inference.self_speculative import self_speculative
from inference.stop import StopStrings
from inference.stream import text_of
from models.llama import Llama
from models.plan import full

PROMPT = list(b"The prompt: ab")
Quiet = Callable[..., Llama]


def _decode(ids: Sequence[int]) -> str:
    """A tokenizer of bytes: most characters beyond ASCII are several tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


def _letters(ids: Sequence[int]) -> str:
    """Every token is one to three letters, so that strings begin and end anywhere in tokens."""
    return "".join(chr(97 + token % 26) * (1 + token % 3) for token in ids)


def _settings(*strings: str, eos: Sequence[int] = (), **changes: int) -> Settings:
    stop = StopStrings(strings, _decode)
    return Settings(stop=stop, eos_ids=frozenset(eos), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strings", "text", "kept"),
    [
        (["\n\n"], "one\n\ntwo", "one\n\n"),
        (["two", "ne"], "one\n\ntwo", "one"),
        (["abc"], "cabc", "cabc"),  # not with the end of the prompt
        (["é"], "naïve café au lait", "naïve café"),
        (["three"], "one two", None),
    ],
)
def test_the_token_that_completes_a_string_is_the_last(
    strings: list[str], text: str, kept: str | None
) -> None:
    ending, tokens = Ending(_settings(*strings), PROMPT), list(text.encode())
    assert ending.add(tokens) == (tokens if kept is None else list(kept.encode()))
    assert ending.is_over == (kept is not None)


def test_rounds_do_not_matter_to_where_a_sequence_ends() -> None:
    tokens = list(b"some words and an END of it")
    for size in range(1, len(tokens) + 1):
        ending, kept = Ending(_settings("an E", "END"), PROMPT), list[int]()
        for start in range(0, len(tokens), size):
            kept += [] if ending.is_over else ending.add(tokens[start : start + size])
        assert bytes(kept) == b"some words and an E", size


def test_whatever_comes_first_ends_it() -> None:
    for eos, last in ((b"y", b"xy"), (b"!", b"xyz")):
        assert Ending(_settings("z", eos=eos), PROMPT).add(b"xyz") == list(last)


def test_a_round_is_cut_and_counts_what_was_in_question() -> None:
    tokens, drafted = list(b"a END b"), list(b"a END bcd")
    round_ = end_round(Ending(_settings("END"), PROMPT), tokens, drafted, 0.0)
    assert round_ == Round(list(b"a END"), drafted=5, accepted=5)
    round_ = end_round(Ending(_settings("END b"), PROMPT), tokens, drafted, 0.0)
    assert round_ == Round(tokens, drafted=9, accepted=6)
    round_ = end_round(Ending(_settings("x", eos=b"c"), PROMPT), tokens, drafted, 0.0)
    assert round_ == Round(tokens, drafted=8, accepted=6)


def test_all_ways_of_decoding_stop_at_the_same_token(quiet_llama: Quiet) -> None:
    model, prompt = quiet_llama(0.5), [3, 14, 15]

    def decoded(settings: Settings) -> list[list[int]]:
        ways = [
            autoregressive(model, prompt, plan=full(4), settings=settings),
            self_speculative(model, prompt, draft=full(1), num_speculations=4, settings=settings),
            self_speculative(model, prompt, draft=full(3), num_speculations=1, settings=settings),
        ]
        plain, drafting = BatchSettings(), BatchSettings(exit_layer=2, num_speculations=3)
        for batch in (plain, drafting):
            rounds = decode_batch(model, [prompt], batch=batch, settings=settings)
            ways.append(each for _, each in rounds)
        return [Generation(tuple(rounds)).token_ids for rounds in ways]

    everything = decoded(Settings(max_new_tokens=14))[0]
    text = text_of(_letters, prompt, everything)
    lengths = set[int]()
    for start in range(0, len(text) - 3, 4):
        stop = StopStrings((text[start : start + 3], "never"), _letters)
        first, *others = decoded(Settings(max_new_tokens=14, stop=stop))
        assert first == everything[: len(first)]
        assert others == [first] * 4
        assert stop.strings[0] in text_of(_letters, prompt, first)
        assert stop.strings[0] not in text_of(_letters, prompt, first[:-1])
        lengths.add(len(first))
    assert len(lengths) > 3


def test_early_exit_stops_at_a_string_too(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(1.0), Settings(max_new_tokens=9)
    free = Generation(tuple(early_exit(model, [5], exit_layer=2, settings=settings))).token_ids
    stop = StopStrings((_letters(free[:3]),), _letters)
    settings = Settings(max_new_tokens=9, stop=stop)
    cut = Generation(tuple(early_exit(model, [5], exit_layer=2, settings=settings))).token_ids
    assert cut == free[:3]
