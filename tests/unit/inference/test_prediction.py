import numpy as np
import pytest

from inference.acceptance import POSITIONS
from inference.costs import Prices
from inference.prediction import expected_drafts, plain_rate, speculative_rates

DEPTH, MOST = 12, 6
PRICES = Prices(
    layer=1 + 0.1 * np.arange(MOST + 1), draft=2.0, accept=3 + 0.2 * np.arange(MOST + 1)
)


def chances(*rows: tuple[float, float, float, float]) -> np.ndarray:
    """One threshold; each exit's four chances are the same at every position."""
    return np.array(rows)[:, None, None].repeat(POSITIONS, axis=1)  # (X, P, 1, 4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_without_a_stop_acceptance_is_the_geometric_sum(alpha: float) -> None:
    made, accepted = expected_drafts(chances((alpha, 0, 1 - alpha, 0)), MOST)
    for draft in range(MOST):
        assert made[draft, 0, 0] == pytest.approx(draft + 1)
        assert accepted[draft, 0, 0] == pytest.approx(sum(alpha**i for i in range(1, draft + 2)))


def test_rounds_that_stop_early_have_the_means_of_a_simulation() -> None:
    probabilities, generator = (0.55, 0.15, 0.1, 0.2), np.random.default_rng(0)
    rounds = 40_000
    made, accepted = np.zeros(rounds), np.zeros(rounds)
    for index in range(rounds):
        is_right = True
        for happened in generator.choice(4, size=MOST, p=probabilities):
            made[index] += 1
            is_right = is_right and happened in (0, 1)
            accepted[index] += is_right
            if happened in (1, 3):
                break
    expected = [each[-1, 0, 0] for each in expected_drafts(chances(probabilities), MOST)]
    assert [made.mean(), accepted.mean()] == pytest.approx(expected, rel=0.02)


def test_a_round_costs_single_passes_below_the_exit_and_one_joint_pass_above() -> None:
    rates = speculative_rates(chances((1, 0, 0, 0)), PRICES, [4], DEPTH, MOST)
    # 3 drafts: 4 tokens through 4 layers one by one, 3 choices, 8 layers on 4 tokens, acceptance.
    seconds = 4 * 4 * 1.0 + 3 * 2.0 + 8 * 1.3 + 3.6
    assert rates[2, 0, 0] == pytest.approx(4 / seconds)


def test_an_exit_that_is_always_wrong_is_predicted_slower_than_plain_steps() -> None:
    rates = speculative_rates(chances((0, 0, 1, 0)), PRICES, [4], DEPTH, MOST)
    assert (rates < plain_rate(PRICES, DEPTH)).all()


def test_drafting_nothing_would_cost_a_plain_step() -> None:
    # A draft that stops at once and costs nothing leaves one pass of two tokens.
    free = Prices(layer=np.ones(MOST + 1), draft=0.0, accept=np.zeros(MOST + 1))
    assert plain_rate(free, DEPTH) == pytest.approx(1 / DEPTH)
