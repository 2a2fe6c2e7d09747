from collections.abc import Iterator, Sequence

import pytest

from inference.bench import (
    Comparison,
    Measurement,
    accept_histogram,
    acceptance_rate,
    compare,
    tokens_per_second,
)
from inference.generation import Decode, Generation, Round
from inference.report import comparison_figures, comparison_table, figures, one_line

# 7 of 11 drafts accepted; 6 tokens in 2 s, and 4 in the prefill's 10 s
SPECULATED = Generation(
    (
        Round([1, 2, 3, 4], drafted=6, accepted=3, seconds=10.0),
        Round([5, 6, 7, 8, 9], drafted=5, accepted=4, seconds=1.5),
        Round([10], drafted=0, accepted=0, seconds=0.5),
    )
)
# 1 of 4 drafts accepted; 3 tokens in 1 s
UNLUCKY = Generation(
    (Round([1], drafted=2, seconds=1.0), Round([2, 3, 4], drafted=2, accepted=1, seconds=1.0))
)
PLAIN = Generation((Round([1], seconds=1.0), Round([2], seconds=0.5), Round([3], seconds=0.5)))
SHORT = Generation((Round([1], seconds=1.0),))


def test_acceptance_is_pooled_over_rounds_and_generations() -> None:
    assert acceptance_rate([SPECULATED]) == 7 / 11
    assert acceptance_rate([SPECULATED, UNLUCKY]) == 8 / 15
    assert acceptance_rate([PLAIN]) is None


def test_the_histogram_counts_rounds_that_drafted() -> None:
    assert accept_histogram([SPECULATED]) == [0, 0, 0, 1, 1]
    assert accept_histogram([SPECULATED, UNLUCKY]) == [1, 1, 0, 1, 1]
    assert accept_histogram([PLAIN]) == []


def test_the_rate_is_all_tokens_over_all_seconds_without_the_first_round() -> None:
    assert tokens_per_second([SPECULATED]) == 3.0
    assert tokens_per_second([SPECULATED, UNLUCKY]) == 9 / 3
    assert tokens_per_second([PLAIN]) == 2.0
    assert tokens_per_second([SHORT]) is None


def _logged(name: str, log: list[tuple[str, int]]) -> Decode:
    def decode(prompt: Sequence[int]) -> Iterator[Round]:
        log.append((name, prompt[0]))
        yield Round([1], seconds=0.1)
        yield Round([2], seconds=0.1 * prompt[0])

    return decode


def test_strategies_are_warmed_up_and_take_turns_on_every_prompt() -> None:
    log: list[tuple[str, int]] = []
    comparison = compare(_logged("a", log), _logged("b", log), [[1], [2]], repeats=2)
    first = [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    second = [("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert log == [("a", 1), ("b", 1), *first, *second]
    assert comparison.baseline.tokens_per_second == pytest.approx(2 / 0.3)
    assert comparison.speedup == pytest.approx(1.0)


def _comparison(ours: Generation = SPECULATED) -> Comparison:
    slow = Generation((Round([1], seconds=1.0), Round([2], seconds=1.0)))
    baseline = Measurement(((PLAIN,), (slow,), (PLAIN,)))  # 2, 1, 2 tokens/s
    return Comparison(baseline, Measurement(((ours,), (ours,), (ours,))))


def test_rates_and_speedups_are_medians_over_the_repeats() -> None:
    comparison = _comparison()
    assert comparison.baseline.tokens_per_second == 2.0
    assert comparison.speedup == 1.5
    assert not comparison.is_same_output


def test_nothing_measured_gives_no_speedup() -> None:
    comparison = _comparison(SHORT)
    assert comparison.speedup is None
    assert "-" in comparison_table(comparison, "short", is_greedy=True)


def test_the_table_has_both_rows_and_the_speedup() -> None:
    head, base, ours, counts, note = comparison_table(
        _comparison(), "self_speculative, exit 2", is_greedy=True
    ).splitlines()
    assert head.split() == [
        "strategy", "tokens", "tokens/s", "prefill", "s", "acceptance", "speedup",
    ]  # fmt: skip
    assert base.split() == ["autoregressive", "3", "2.0", "1.000", "-", "1.00x"]
    assert ours.split()[3:] == ["10", "3.0", "10.000", "0.636", "1.50x"]
    assert counts.endswith(": 0 0 0 1 1")
    assert note.endswith("other tokens than autoregressive")


def test_sampled_tokens_are_not_compared() -> None:
    table = comparison_table(_comparison(), "self_speculative", is_greedy=False)
    assert "autoregressive" not in table.splitlines()[-1]
    values = comparison_figures(_comparison(), "self_speculative", is_greedy=False)
    assert values["same_output"] is None
    assert (values["speedup"], values["self_speculative"]["acceptance_rate"]) == (1.5, 7 / 11)


def test_figures_of_a_generation() -> None:
    assert figures(SPECULATED) == {
        "token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "acceptance_rate": 7 / 11,
        "tokens_per_second": 3.0,
        "seconds_prefill": 10.0,
        "seconds_decode": 2.0,
        "rounds": 3,
        "accept_histogram": [0, 0, 0, 1, 1],
    }
    assert one_line(SPECULATED).endswith("63.6% of drafts accepted in 3 rounds")
    assert "accepted" not in one_line(PLAIN)
