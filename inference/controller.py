"""Chooses exit, draft length and confidence stop while decoding; plain steps where nothing pays.

Letters: X exits, M most drafts, C confidence thresholds, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from time import perf_counter

import numpy as np

from inference.acceptance import MEMORY, THRESHOLDS, Acceptance, Array
from inference.costs import Costs
from inference.decoding_plan import Phases
from inference.generation import Round
from inference.laps import Part
from inference.prediction import plain_rate, speculative_rates
from models.plan import LayerPlan, full

LOOK_SHARE = 0.015
"""Of all time, the most that looking at exits that do not draft may take."""
EARLY_SHARE, EARLY_LOOKS, CLOSE = 0.1, 4, 0.75
"""Of the time so far, while there were fewer looks and drafting is predicted to be nearly as fast
as plain steps, or faster: then evidence is worth its price. Once for a controller."""
WORTH = 1.03
"""Predicted gain over plain steps, or over the setting in force, from which on it is changed."""
BELIEF = 24.0
"""Tokens by which the prediction is believed before it is held against what really came out."""
LOOK = 8
"""Positions of one look."""
RETHINK = 4
"""Rounds after which the setting is thought over, if there is news."""
THINK_SHARE = 0.01
"""Of all time, the most that thinking may take: it counts for tiny models only."""

Share = Callable[[Sequence[float]], Sequence[float]]
"""Makes one rank's numbers those of all ranks that decode together."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a round drafts."""

    exit_layer: int
    num_drafts: int
    """0 is a plain step, with hidden states taken at the exits on the way."""
    confidence: float = 0.0


def candidate_exits(depth: int) -> tuple[int, ...]:
    """Return the exits worth watching, at most 8: all of a small model, spread over a deep one.

    Closer together where they are low, because there a layer more or less is a larger part of a
    draft's cost. One beyond three quarters of the model saves too little to pay.
    """
    last = max(1, min(depth - 1, round(0.75 * depth)))
    steps = np.linspace(0, 1, min(last, 8)) ** (1.5 if last > 8 else 1)
    return tuple(sorted({round(1 + e * (last - 1)) for e in steps}))


def identical(numbers: Sequence[float]) -> Sequence[float]:
    """Share among one."""
    return numbers


class Controller:
    """What is known of a model on this machine and this text; better the longer it is used.

    One for a model: it may outlive a generation. Whatever it decides, tokens are the full model's.
    """

    def __init__(
        self,
        depth: int,
        *,
        most: int,
        share: Share = identical,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Watch a model of L = depth layers that drafts at most M tokens.

        `clock` is what its own thinking is timed by, in seconds.

        Raises:
            ValueError: if the model has a single layer, so no exit.
        """
        if depth < 2:
            raise ValueError("strategy=adaptive needs a model of at least 2 layers, this has 1")
        self.most, self._depth, self._share, self._clock = most, depth, share, clock
        self.exits = candidate_exits(depth)
        self.setting = Setting(self.exits[-1], 0)
        """Of the next round."""
        self.is_watching = True
        """Whether the next round is to leave hidden states at every watched exit, for a look."""
        self._watching = {e: _watching(e, self.exits, depth) for e in self.exits}
        self._drafting = {e: _drafting(e, depth) for e in self.exits}
        self._plain = _drafting(depth, depth)
        self._acceptance, self._costs = Acceptance(len(self.exits)), Costs(most + 1)
        self._rate, self._gain = 0.0, 0.0  # predicted: of the setting; of the best one over plain
        self._came, self._predicted = 0.0, 0.0  # tokens of drafting rounds, decayed
        self._total, self._looking, self._thinking = 0.0, 0.0, 0.0  # seconds
        self._looks, self._rounds, self._has_news = 0, 0, True

    @property
    def phases(self) -> Phases:
        """The plans of the next round. Every stop at an exit costs a little, so few rounds do."""
        if self.is_watching:
            return self._watching[self.setting.exit_layer]
        return self._drafting[self.setting.exit_layer] if self.setting.num_drafts else self._plain

    @property
    def rates(self) -> dict[int, float]:
        """How often a first draft would be accepted, by exit."""
        return dict(zip(self.exits, self._acceptance.rates(), strict=True))

    def observe(self, laps: Iterable[tuple[Part, float]], round_: Round) -> None:
        """Learn from a round: its times, and what became of its drafts."""
        self._costs.add(laps)
        self._rounds += 1
        self._total += round_.seconds
        tokens = len(round_.tokens)
        self._acceptance.fade(tokens)
        fading = exp(-tokens / MEMORY)
        self._came, self._predicted = self._came * fading, self._predicted * fading
        if round_.drafted:
            self._has_news = True
            exit_index = self.exits.index(self.setting.exit_layer)
            self._acceptance.drafted(exit_index, round_.accepted, round_.drafted)
            self._came += tokens
            self._predicted += self._rate * round_.seconds

    def looked(self, matches: Array, confidences: Array, seconds: float) -> None:
        """Learn from a look at every exit, which took so long; see `inference.shadow`."""
        self._acceptance.add(matches, confidences)
        self._looking += seconds
        self._has_news = True

    def decide(self, num_seen: int) -> bool:
        """Choose the setting of the next round; return whether to look at the exits before it.

        Both only as often as their share of the time allows.

        Args:
            num_seen: consecutive positions that could be looked at.
        """
        setting = self.setting
        is_time = self._rounds % RETHINK == 0 and self._thinking < THINK_SHARE * self._total
        if self._has_news and is_time:
            started = self._clock()
            setting = self._choose()
            self._thinking += self._clock() - started
        is_early = self._looks < EARLY_LOOKS and self._gain > CLOSE
        share = EARLY_SHARE if is_early else LOOK_SHARE
        watch = not self._looks or self._looking < share * self._total
        look = watch and num_seen >= LOOK
        watch = watch and not look
        mine = (setting.exit_layer, setting.num_drafts, setting.confidence, self._rate, look, watch)
        exit_layer, num_drafts, confidence, self._rate, looks, watches = self._share(mine)
        self.setting = Setting(int(exit_layer), int(num_drafts), confidence)
        self.is_watching = bool(watches)
        self._looks += int(looks)
        return bool(looks)

    def _choose(self) -> Setting:
        """Return the fastest setting, or the one in force if it is hardly slower."""
        prices = self._costs.prices()
        if prices is None:
            return self.setting
        self._has_news = False
        plain, depth = plain_rate(prices, self._depth), self._depth
        rates = speculative_rates(
            self._acceptance.chances(), prices, self.exits, depth, self.most
        )  # (M, X, C)
        rates *= (self._came + BELIEF) / (self._predicted + BELIEF)
        self._gain = float(rates.max()) / plain
        draft, exit_index, threshold = np.unravel_index(rates.argmax(), rates.shape)
        best = Setting(self.exits[exit_index], int(draft) + 1, THRESHOLDS[threshold])
        now = self.setting
        if not now.num_drafts:
            self._rate = plain
        else:
            index = (
                now.num_drafts - 1,
                self.exits.index(now.exit_layer),
                THRESHOLDS.index(now.confidence),
            )
            self._rate = float(rates[index])
            if self._rate < plain:
                now, self._rate = Setting(now.exit_layer, 0), plain
        if rates.max() > WORTH * self._rate:
            now, self._rate = best, float(rates.max())
        return now


def _watching(exit_layer: int, exits: Sequence[int], depth: int) -> Phases:
    below = [e for e in exits if e <= exit_layer]
    above = [e for e in exits if e > exit_layer]
    return Phases(
        full(exit_layer, exits=below),
        LayerPlan((), (exit_layer,)),
        full(depth, start=exit_layer, exits=[*above, depth]),
    )


def _drafting(exit_layer: int, depth: int) -> Phases:
    """Return the phases of drafting at an exit; at the last one, those of a plain step."""
    return Phases(full(exit_layer), LayerPlan((), (exit_layer,)), full(depth, start=exit_layer))
