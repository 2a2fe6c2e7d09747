import numpy as np
import pytest

from inference.costs import ACCEPT, DRAFT, GUESS, LAYER, Costs


def measured(most: int, **seconds: dict[int, float]) -> Costs:
    costs = Costs(most)
    for name, by_count in seconds.items():
        for count, each in by_count.items():
            costs.add([((name, count), 99.0), ((name, count), each)])  # the first warms up
    return costs


def test_nothing_is_known_before_single_positions_were_measured_twice() -> None:
    costs = Costs(4)
    assert costs.prices() is None
    costs.add([((LAYER, 1), 1.0), ((ACCEPT, 1), 1.0)])
    assert costs.prices() is None
    costs.add([((LAYER, 1), 1.0), ((ACCEPT, 1), 1.0)])
    assert costs.prices() is not None


def test_between_measured_counts_prices_are_on_a_line_and_beyond_them_guessed() -> None:
    prices = measured(5, **{LAYER: {1: 2.0, 3: 4.0}, ACCEPT: {1: 1.0}}).prices()
    assert prices is not None
    assert prices.layer == pytest.approx([2, 3, 4, 4 + 2 * GUESS, 4 + 4 * GUESS])
    assert prices.accept == pytest.approx(1 + GUESS * np.arange(5))


def test_a_draft_is_taken_to_cost_what_acceptance_does_until_one_was_made() -> None:
    known = {LAYER: {1: 2.0}, ACCEPT: {1: 1.0}}
    before, after = (
        measured(2, **known).prices(),
        measured(2, **known, **{DRAFT: {1: 0.5}}).prices(),
    )
    assert before is not None
    assert after is not None
    assert (before.draft, after.draft) == (1.0, 0.5)


def test_disturbed_passes_do_not_count() -> None:
    costs = measured(2, **{LAYER: {1: 2.0}, ACCEPT: {1: 1.0}})
    for step in range(20):
        costs.add([((LAYER, 1), 50.0 if step % 2 else 2.0)])
    prices = costs.prices()
    assert prices is not None
    assert prices.layer[0] == 2.0


def test_passes_longer_than_any_draft_are_not_looked_at() -> None:
    known = {LAYER: {1: 2.0}, ACCEPT: {1: 1.0}}
    longer = {LAYER: {1: 2.0, 9: 7.0}, ACCEPT: {1: 1.0}}
    without, with_ = measured(4, **known).prices(), measured(4, **longer).prices()
    assert without is not None
    assert with_ is not None
    assert list(with_.layer) == list(without.layer)
