"""A made-up machine and made-up exits: what the controller should find is known exactly."""

import numpy as np
import pytest

from inference.acceptance import THRESHOLDS
from inference.controller import LOOK, LOOK_SHARE, Controller, candidate_exits
from inference.costs import ACCEPT, DRAFT, LAYER, Prices
from inference.generation import Round
from inference.prediction import plain_rate, speculative_rates

DEPTH, MOST = 12, 8
PRICES = Prices(
    layer=1e-3 * (1 + 0.05 * np.arange(MOST + 1)),
    draft=2e-3,
    accept=2e-3 * (1 + 0.05 * np.arange(MOST + 1)),
)
LOOK_SECONDS = 8e-3


class World:
    """Plays rounds as a controller wants them, by fixed chances that an exit is right."""

    def __init__(self, rate_of: dict[int, float], seed: int = 0) -> None:
        self.controller = Controller(DEPTH, most=MOST, clock=lambda: 0.0)  # thinks in no time
        self.rates = rate_of
        self.generator = np.random.default_rng(seed)
        self.seconds, self.tokens, self.looking = 0.0, 0, 0.0

    def rate(self, exit_layer: int) -> float:
        return self.rates.get(exit_layer, 0.0)

    def play(self, rounds: int) -> None:
        seen = 0
        for _ in range(rounds):
            setting = self.controller.setting
            made, accepted = self.drafts(setting.exit_layer, setting.num_drafts)
            seen = min(seen + accepted + 1, LOOK)
            if self.end_round(made, accepted, seen):
                exits = self.controller.exits
                chance = np.array([[self.rate(e)] for e in exits])
                matches = (self.generator.random((len(exits), LOOK)) < chance).astype(float)
                self.controller.looked(matches, np.full(matches.shape, 0.9), LOOK_SECONDS)
                self.seconds += LOOK_SECONDS
                self.looking += LOOK_SECONDS
                seen = 0

    def drafts(self, exit_layer: int, most: int) -> tuple[int, int]:
        accepted = 0
        while accepted < most and self.generator.random() < self.rate(exit_layer):
            accepted += 1
        return most, accepted

    def end_round(self, made: int, accepted: int, seen: int) -> bool:
        exit_layer, k = self.controller.setting.exit_layer, made + 1
        parts = [
            (LAYER, 1, PRICES.layer[0], (made + 1) * exit_layer),
            (DRAFT, 1, PRICES.draft, made),
        ]
        parts += [(LAYER, k, PRICES.layer[made], DEPTH - exit_layer)]
        parts += [(ACCEPT, k, PRICES.accept[made], 1)]
        seconds = sum(price * times for _, _, price, times in parts)
        laps = [((name, count), float(price)) for name, count, price, times in parts if times]
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + accepted + 1
        self.controller.observe(laps, Round([0] * (accepted + 1), made, accepted, seconds))
        return self.controller.decide(seen)


def best_rate(rate_of: dict[int, float]) -> float:
    """Tokens per second of the best fixed setting, by the closed form."""
    plain = plain_rate(PRICES, DEPTH)
    chances = np.array([[a, 0, 1 - a, 0] for a in rate_of.values()])[:, None, None]
    rates = speculative_rates(chances.repeat(8, axis=1), PRICES, list(rate_of), DEPTH, MOST)
    return max(plain, float(rates.max()))


def test_a_small_model_has_all_exits_and_a_deep_one_eight() -> None:
    assert candidate_exits(2) == (1,)
    assert candidate_exits(8) == (1, 2, 3, 4, 5, 6)
    assert len(candidate_exits(80)) == 8
    assert max(candidate_exits(80)) == 60


def test_a_model_of_one_layer_has_no_exit() -> None:
    with pytest.raises(ValueError, match="at least 2 layers, this has 1"):
        Controller(1, most=4)


def test_exits_that_are_never_right_are_never_drafted_with() -> None:
    world = World({})
    world.play(400)
    assert world.controller.setting.num_drafts == 0
    assert world.tokens / world.seconds > 0.95 * plain_rate(PRICES, DEPTH)


def test_looking_takes_no_more_than_its_share() -> None:
    world = World({})
    world.play(1000)
    assert world.looking <= LOOK_SHARE * world.seconds + LOOK_SECONDS
    assert world.looking > 0.5 * LOOK_SHARE * world.seconds


@pytest.mark.parametrize(
    "rate_of",
    [{2: 0.9}, {3: 0.6, 6: 0.95}, {1: 0.3, 2: 0.5, 4: 0.7, 5: 0.8}, {9: 0.99}],
    ids=["one early exit", "a late one is better", "all are middling", "only a late one"],
)
def test_it_is_hardly_slower_than_the_best_fixed_setting(rate_of: dict[int, float]) -> None:
    world = World(rate_of)
    world.play(150)  # finds it
    world.seconds, world.tokens = 0.0, 0
    world.play(1500)
    watched = {e: rate for e, rate in rate_of.items() if e in world.controller.exits}
    assert world.tokens / world.seconds > 0.95 * best_rate(watched)


def test_it_gives_up_an_exit_that_is_no_longer_right() -> None:
    world = World({2: 0.95})
    world.play(200)
    assert world.controller.setting.num_drafts > 0
    world.rates = {}
    world.play(200)
    assert world.controller.setting.num_drafts == 0


def test_it_moves_on_to_an_exit_that_has_become_better() -> None:
    world = World({7: 0.95})
    world.play(200)
    assert world.controller.setting.exit_layer == 7
    world.rates = {2: 0.95, 7: 0.95}
    world.play(800)
    assert world.controller.setting.exit_layer == 2


def test_predictions_that_do_not_come_true_lose_their_weight() -> None:
    """Looks praise an exit that never delivers: rounds decide, not looks."""
    world = World({3: 0.97})
    world.drafts = lambda exit_layer, most: (most, 0)  # type: ignore[method-assign]
    world.play(60)
    world.seconds, world.tokens = 0.0, 0
    world.play(600)
    assert world.tokens / world.seconds > 0.85 * plain_rate(PRICES, DEPTH)


def test_ranks_take_the_setting_of_the_one_that_shares_it() -> None:
    controller = Controller(
        DEPTH, most=MOST, share=lambda _: (4, 3, THRESHOLDS[2], 50.0, True, False)
    )
    assert controller.decide(0)
    assert (controller.setting.exit_layer, controller.setting.num_drafts) == (4, 3)
    assert controller.setting.confidence == THRESHOLDS[2]
    assert controller.phases.shared.exits[-1] == 4
