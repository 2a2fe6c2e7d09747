import pytest

from benchmarks.timing import Timings, interleave, ratio, spread


def test_jobs_take_turns_and_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    found = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1
    )
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert len(found["a"].wall) == len(found["b"].cpu) == 3


def test_clocks_are_read_after_waiting() -> None:
    order: list[str] = []
    interleave({"a": lambda: order.append("a")}, rounds=1, warmup=0, wait=lambda: order.append("w"))
    assert order == ["w", "a", "w"]


def test_a_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() -> None:
    ours, theirs = Timings((1.0, 2.0, 30.0), (0.0,) * 3), Timings((2.0, 1.0, 10.0), (0.0,) * 3)
    assert ratio(ours, theirs).value == 2.0


def test_a_spread_has_the_quartiles() -> None:
    found = spread((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (found.low, found.value, found.high) == (2.0, 3.0, 4.0)
    assert str(found) == "3.000 (2.000-4.000)"


def test_a_single_value_has_no_spread() -> None:
    assert spread((2.5,)).low == pytest.approx(2.5)
