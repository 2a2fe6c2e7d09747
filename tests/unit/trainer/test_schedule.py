import itertools
import math
from typing import Any

import pytest

from trainer.recipe_config import ScheduleConfig
from trainer.schedule import check_schedule, learning_rate

KINDS: list[dict[str, Any]] = [
    {"kind": "cosine", "min_ratio": 0.1},
    {"kind": "linear", "min_ratio": 0.1},
    {"kind": "wsd", "min_ratio": 0.1, "decay_fraction": 0.25},
    {"kind": "constant"},
]


def curve(total: int = 100, **settings: Any) -> list[float]:
    config = ScheduleConfig(**settings)
    check_schedule(config, total)
    return [learning_rate(config, 3e-4, step, total) for step in range(total)]


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s["kind"])
def test_the_rate_rises_in_a_line_to_the_peak_and_never_again(settings: dict[str, Any]) -> None:
    rates = curve(warmup_steps=9, **settings)
    assert rates[:10] == pytest.approx([3e-4 * k / 10 for k in range(1, 11)])
    assert rates[9] == max(rates)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s["kind"])
def test_without_warm_up_the_first_step_has_the_peak_rate(settings: dict[str, Any]) -> None:
    assert curve(**settings)[0] == 3e-4


@pytest.mark.parametrize("settings", KINDS[:3], ids=lambda s: s["kind"])
def test_the_rate_falls_towards_the_least_and_stays_above_it(settings: dict[str, Any]) -> None:
    rates = curve(total=1000, warmup_steps=10, **settings)
    assert rates[-1] > 3e-5
    assert rates[-1] == pytest.approx(3e-5, rel=0.05)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    rates = curve(kind="cosine", warmup_steps=20, min_ratio=0.5)
    assert rates[60] == pytest.approx(3e-4 * 0.75)
    assert rates[40] == pytest.approx(3e-4 * (0.75 + 0.25 * math.cos(math.pi / 4)))


def test_linear_falls_by_the_same_amount_in_each_step() -> None:
    rates = curve(kind="linear")
    assert rates == pytest.approx([3e-4 * (1 - step / 100) for step in range(100)])


def test_wsd_is_flat_until_its_share_of_the_steps_is_left() -> None:
    rates = curve(kind="wsd", decay_fraction=0.2, warmup_steps=5)
    assert set(rates[5:81]) == {3e-4}
    assert rates[81:] == pytest.approx([3e-4 * (1 - k / 20) for k in range(1, 20)])


def test_constant_stays_at_the_peak() -> None:
    assert set(curve(kind="constant")) == {3e-4}


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s["kind"])
def test_a_single_step_is_a_schedule_too(settings: dict[str, Any]) -> None:
    assert curve(total=1, **settings) == [3e-4]


def test_a_warm_up_as_long_as_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^schedule\.warmup_steps 100 must be less than the 100 "):
        curve(total=100, warmup_steps=100)


def test_a_warm_up_that_reaches_into_the_decay_is_refused() -> None:
    curve(kind="wsd", warmup_steps=50, decay_fraction=0.5)
    with pytest.raises(
        ValueError, match=r"^schedule\.decay_fraction 0.5 of 100 steps and .* overlap"
    ):
        curve(kind="wsd", warmup_steps=51, decay_fraction=0.5)
