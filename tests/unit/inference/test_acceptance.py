import numpy as np
import pytest

from inference.acceptance import (
    POSITIONS,
    RIGHT_GOES_ON,
    RIGHT_STOPS,
    THRESHOLDS,
    WRONG_GOES_ON,
    WRONG_STOPS,
    Acceptance,
)


def test_before_any_evidence_every_exit_is_taken_to_be_wrong() -> None:
    assert list(Acceptance(3).rates()) == [0, 0, 0]


def test_rates_are_those_seen() -> None:
    acceptance, generator = Acceptance(2), np.random.default_rng(0)
    for _ in range(200):
        matches = (generator.random((2, 8)) < [[0.9], [0.2]]).astype(float)
        acceptance.add(matches, np.ones((2, 8)))
    assert acceptance.rates() == pytest.approx([0.9, 0.2], abs=0.02)
    later = acceptance.chances()[:, :, 0, RIGHT_GOES_ON]  # the same at every position
    assert later[0] == pytest.approx([0.9] * POSITIONS, abs=0.08)  # fewer samples further on


def test_positions_are_told_apart() -> None:
    acceptance = Acceptance(1)
    for _ in range(100):  # two right ones, then always a wrong one
        acceptance.add(np.array([[1.0, 1.0, 0.0] * 4]), np.ones((1, 12)))
    right = acceptance.chances()[0, :, 0, RIGHT_GOES_ON]
    # A draft may begin anywhere: after one right token, the next is right half of the time.
    assert right[:3] == pytest.approx([2 / 3, 1 / 2, 0], abs=0.02)


def test_a_cut_stretch_does_not_count_as_wrong() -> None:
    acceptance = Acceptance(1)
    for _ in range(400):
        acceptance.add(np.ones((1, 2)), np.ones((1, 2)))
    assert acceptance.chances()[0, :2, 0, RIGHT_GOES_ON] == pytest.approx([1, 1], abs=0.01)


def test_confidence_splits_what_happens() -> None:
    acceptance = Acceptance(1)
    for _ in range(100):
        acceptance.add(np.array([[1.0, 0.0]]), np.array([[0.9, 0.3]]))
    at = {c: acceptance.chances()[0, 0, i] for i, c in enumerate(THRESHOLDS)}
    assert at[0.0][[RIGHT_GOES_ON, WRONG_GOES_ON]] == pytest.approx([0.5, 0.5], abs=0.01)
    assert at[0.4][[RIGHT_GOES_ON, WRONG_STOPS]] == pytest.approx([0.5, 0.5], abs=0.01)
    assert at[0.4][[RIGHT_STOPS, WRONG_GOES_ON]] == pytest.approx([0, 0], abs=0.01)


def test_rounds_that_drafted_count_without_a_look() -> None:
    looked, drafted = Acceptance(1), Acceptance(1)
    for _ in range(50):
        looked.add(np.array([[1.0, 1.0, 0.0]]), np.ones((1, 3)))
        drafted.drafted(0, accepted=2, drafted=5)
    # Two of three tokens are right; but a round begins before the first of them only.
    assert looked.rates() == pytest.approx([2 / 3], abs=0.01)
    right = drafted.chances()[0, :3, 0, RIGHT_GOES_ON]
    assert right == pytest.approx([1, 1, 0], abs=0.1)


def test_a_round_that_was_right_to_its_end_says_nothing_of_what_would_have_followed() -> None:
    acceptance = Acceptance(1)
    acceptance.drafted(0, accepted=2, drafted=2)
    chances = acceptance.chances()[0, :, 0]
    assert chances[2] == pytest.approx(chances[1])


def test_old_evidence_fades() -> None:
    acceptance = Acceptance(1)
    for _ in range(100):
        acceptance.add(np.ones((1, 4)), np.ones((1, 4)))
    for _ in range(400):
        acceptance.fade(4)
        acceptance.add(np.zeros((1, 4)), np.ones((1, 4)))
    assert acceptance.rates()[0] < 0.05
