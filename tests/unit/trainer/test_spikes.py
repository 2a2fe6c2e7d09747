import json
import math
import random
from dataclasses import replace

import pytest

from trainer.spikes import (
    SpikesConfig,
    SpikeState,
    data_step,
    find_spike,
    jump,
    leave_out,
    not_finite,
    remember,
    spike_state,
)

SKIP = SpikesConfig(policy="skip", window=20, grad_norm_deviations=8.0)


def seen(config: SpikesConfig, losses: list[float], norms: list[float] | None = None) -> SpikeState:
    state = SpikeState()
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        state = remember(config, state, {4: loss}, norm)
    return state


def noise(count: int, middle: float, spread: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(middle, spread) for _ in range(count)]


def test_ordinary_noise_is_no_spike_and_twice_the_loss_is() -> None:
    state = seen(SKIP, noise(20, 3.0, 0.05))
    for loss in noise(1000, 3.0, 0.05, seed=1):
        assert find_spike(SKIP, state, {4: loss}, 1.0) is None
    assert "the loss at exit 4 is 6, " in str(find_spike(SKIP, state, {4: 6.0}, 1.0))


def test_a_gradient_norm_may_be_the_spike() -> None:
    state = seen(SKIP, [3.0] * 20, noise(20, 1.0, 0.05))
    assert find_spike(SKIP, state, {4: 3.0}, 1.2) is None
    assert "the gradient norm is 5, " in str(find_spike(SKIP, state, {4: 3.0}, 5.0))


def test_a_fall_of_the_loss_is_none() -> None:
    assert find_spike(SKIP, seen(SKIP, [3.0] * 20), {4: 0.1}, 0.01) is None


def test_a_run_without_any_noise_spikes_at_a_tenth_above_and_not_below_that() -> None:
    state = seen(SKIP, [3.0] * 20)
    assert find_spike(SKIP, state, {4: 3.29}, 1.0) is None
    assert find_spike(SKIP, state, {4: 3.31}, 1.0) is not None


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert find_spike(SKIP, seen(SKIP, [3.0] * 19), {4: 99.0}, 1.0) is None


def test_one_wild_step_in_the_window_does_not_hide_the_next() -> None:
    state = seen(SKIP, [*noise(19, 3.0, 0.05), 50.0])
    assert find_spike(SKIP, state, {4: 6.0}, 1.0) is not None


def test_an_exit_that_the_curriculum_turns_on_is_none() -> None:
    state = seen(SKIP, noise(20, 3.0, 0.05))
    assert find_spike(SKIP, state, {1: 9.0, 4: 3.0}, 1.0) is None


def test_the_state_survives_json_bit_for_bit() -> None:
    state = replace(seen(SKIP, noise(20, 3.0, 0.05)), left_out=(3, 9), jumps=((5, 2),))
    assert spike_state(json.loads(json.dumps(state.as_json()))) == state
    assert spike_state(None) == SpikeState()


def test_only_the_window_is_remembered() -> None:
    assert seen(SKIP, [float(i) for i in range(50)]).losses == tuple(map(float, range(30, 50)))


def test_data_jumps_over_what_was_rolled_back() -> None:
    before = SpikeState(losses=(1.0,))
    now = jump(before, SpikeState(losses=(2.0,), left_out=(17,)), step=15, spike=17)
    assert (now.losses, now.left_out) == ((1.0,), (17,))
    assert [data_step(now, step) for step in (0, 14, 15, 16)] == [0, 14, 18, 19]
    again = jump(before, now, step=15, spike=16)  # which trained on the data of step 19
    assert [data_step(again, step) for step in (14, 15, 20)] == [14, 20, 25]
    later = jump(before, again, step=20, spike=22)
    assert [data_step(later, step) for step in (19, 20)] == [24, 28]


def test_the_budget_counts_the_spikes_of_late_only() -> None:
    config = replace(SKIP, at_most=2, within_steps=100)
    state = leave_out(config, leave_out(config, SpikeState(), 10, "x"), 50, "x")
    with pytest.raises(RuntimeError, match="2 updates were left out within 100 steps already"):
        leave_out(config, state, 109, "the loss is high")
    assert leave_out(config, state, 110, "x").left_out == (50, 110)


def test_numbers_that_are_not_finite_are_named() -> None:
    assert not_finite({1: 2.0, 4: 3.0}, 1.0) is None
    assert not_finite({1: math.nan, 4: 3.0}, 1.0) == "the loss at exit 1 is nan"
    assert "gradient norm is inf" in str(not_finite({4: 3.0}, math.inf))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "skip", "loss_deviations": 0.0}, r"spikes\.loss_deviations must be above 0"),
        ({"policy": "skip", "grad_norm_deviations": -1.0}, r"spikes\.grad_norm_deviations must"),
        ({"policy": "skip", "window": 3}, r"spikes\.window must be at least 8"),
        ({"policy": "skip", "loss_deviations": None, "window": 50}, r"window 50 has no effect"),
        ({"policy": "stop", "at_most": 2}, r"spikes\.at_most 2 has no effect with policy stop"),
        ({"policy": "stop", "within_steps": 9}, r"spikes\.within_steps 9 has no effect"),
        ({"policy": "stop", "loss_deviations": None}, r"does what happens without the section"),
        ({"policy": "rollback", "at_most": 0}, r"spikes\.at_most must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikesConfig(**settings)
