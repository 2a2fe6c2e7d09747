import math

import pytest
import torch

from inference.two_sample import Outcome, two_sample


def _draws(weights: list[float], count: int, seed: int, length: int = 2) -> list[Outcome]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(
        torch.tensor(weights), count * length, replacement=True, generator=generator
    )
    return [tuple(row) for row in drawn.view(count, length).tolist()]


@pytest.mark.parametrize(
    ("first", "second", "statistic"),
    [
        ((30, 20), (20, 30), 4.0),
        ((60, 40), (20, 30), 150 * (60 * 30 - 40 * 20) ** 2 / (100 * 50 * 80 * 70)),
        ((25, 25), (25, 25), 0.0),
    ],
)
def test_two_cells_give_the_p_value_of_a_contingency_table(
    first: tuple[int, int], second: tuple[int, int], statistic: float
) -> None:
    samples = ([(0,)] * zeros + [(1,)] * ones for zeros, ones in (first, second))
    test = two_sample(*samples)
    assert test.p_value == pytest.approx(math.erfc(math.sqrt(statistic / 2)))  # one freedom
    assert (test.length, test.cells) == (1, 2)


def test_samples_of_one_distribution_are_seldom_told_apart() -> None:
    weights = [0.4, 0.3, 0.2, 0.05, 0.03, 0.02]
    found = [
        two_sample(_draws(weights, 200, seed), _draws(weights, 200, 1000 + seed)).p_value < 0.05
        for seed in range(200)
    ]
    assert sum(found) <= 18  # 10 are expected at most; 18 or more have a chance of 1 in 80


def test_samples_of_unlike_distributions_are_told_apart() -> None:
    first, second = _draws([0.5, 0.3, 0.2], 300, 0), _draws([0.35, 0.3, 0.35], 300, 1)
    assert two_sample(first, second).p_value < 1e-4


def test_a_dependence_on_the_token_before_is_seen() -> None:
    free = [(a, b) for a in (0, 1) for b in (0, 1)] * 50
    bound = [(a, a) for a in (0, 1)] * 100
    test = two_sample(free, bound)
    assert test.p_value < 1e-10
    assert (test.length, test.cells) == (2, 4)


def test_a_sequence_that_ends_early_is_an_outcome_of_its_own() -> None:
    assert two_sample([(0,)] * 60 + [(0, 1)] * 40, [(0, 1)] * 100).p_value < 1e-6


def test_rare_outcomes_are_pooled_with_their_neighbours() -> None:
    once = [(token,) for token in range(40)]
    test = two_sample(once, once)
    assert (test.p_value, test.cells) == (1.0, 8)  # each in both samples: cells of five


def test_what_is_left_over_joins_the_rarest_cell() -> None:
    common = [(0,)] * 40 + [(5,)] * 20
    assert two_sample([*common, (9,)], [*common, (9,)]).cells == 2
    assert two_sample([(0,)] * 50 + [(9,)], [(0,)] * 51).cells == 1
    assert two_sample([(0,)], [(1,)]).p_value == 1.0


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two samples, one is empty"):
        two_sample([], [(1,)])
