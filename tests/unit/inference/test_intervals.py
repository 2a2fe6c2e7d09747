import numpy as np
import pytest

from inference.measure.intervals import ratio, ratio_of_ratios


def test_a_rate_is_pooled_and_its_interval_surrounds_it() -> None:
    tokens, seconds = np.array([10.0, 90.0, 50.0]), np.array([10.0, 30.0, 20.0])
    found = ratio(tokens, seconds)
    assert found is not None
    assert found.value == pytest.approx(150 / 60)  # not the mean of 1, 3 and 2.5
    assert 1 <= found.low < found.value < found.high <= 3
    assert ratio(tokens, seconds) == found


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, covered = np.random.default_rng(1), 0
    for _ in range(100):
        found = ratio(draw.exponential(2.0, 60), np.ones(60))
        assert found is not None
        covered += found.low <= 2.0 <= found.high
    assert 85 <= covered <= 99


def test_a_speedup_on_the_same_prompts_is_sharper_than_either_rate() -> None:
    seconds = np.array([1.0, 5.0, 2.0, 9.0, 4.0])  # prompts differ, the gain does not
    tokens = np.full(5, 100.0)
    gain = ratio_of_ratios((tokens, seconds / 2), (tokens, seconds))
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx((2, 2, 2))


def test_one_prompt_has_no_interval_and_no_time_no_rate() -> None:
    one = ratio(np.array([3.0]), np.array([2.0]))
    assert one is not None
    assert one.low == one.value == one.high == 1.5
    assert ratio(np.array([3.0]), np.array([0.0])) is None
    zero = np.array([0.0])
    assert ratio_of_ratios((one_count := np.array([1.0]), zero), (one_count, one_count)) is None
