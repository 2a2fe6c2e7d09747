"""Figures of measured generations, with intervals over prompts, as JSON values.

Letters: P prompts, K most drafts of a round.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from inference.generation import Generation
from inference.measure.intervals import Counts, Interval, ratio, ratio_of_ratios
from inference.measure.ways import Measured


def acceptance_by_position(generations: Sequence[Generation]) -> list[float]:
    """Return for i = 1..K in how many of the rounds with i drafts the first i were all accepted."""
    rounds = [r for each in generations for r in each.rounds if r.drafted]
    longest = max((r.drafted for r in rounds), default=0)
    shares = []
    for position in range(1, longest + 1):
        tried = [r for r in rounds if r.drafted >= position]
        shares.append(sum(r.accepted >= position for r in tried) / len(tried))
    return shares


def acceptance(generations: Sequence[Generation]) -> Interval | None:
    """Return accepted over drafted tokens; None if nothing was drafted."""
    accepted = [sum(each.accept_counts) for each in generations]
    drafted = [sum(each.draft_counts) for each in generations]
    return ratio(_counts(accepted), _counts(drafted))


def speed(measured: Measured) -> Interval | None:
    """Return all tokens over all seconds.

    One prompt after another, this is decoding alone: prefill, and the tokens that it gave, are
    apart, and intervals are over prompts. Batches read prompts while others go on, so there it is
    everything over the seconds on the clock, and with one run of all prompts there is no interval.
    """
    if measured.way.rows > 1:
        tokens = sum(len(each.token_ids) for each in measured.generations)
        rate = tokens / median(measured.seconds)
        return Interval(rate, rate, rate)
    return ratio(*_decoding(measured))


def speedup(ours: Measured, base: Measured) -> Interval | None:
    """Return how many times as many tokens a second as the other's, on the same prompts."""
    if ours.way.rows > 1:
        pairs = zip(ours.seconds, base.seconds, strict=True)
        tokens, others = (sum(len(each.token_ids) for each in m.generations) for m in (ours, base))
        value = median(theirs / seconds for seconds, theirs in pairs) * tokens / others
        return Interval(value, value, value)
    return ratio_of_ratios(_decoding(ours), _decoding(base))


def figures(measured: Measured) -> dict[str, Any]:
    """Return everything that one way of decoding is measured by, texts apart."""
    every = [each for repeat in measured.repeats for each in repeat]
    per_token = _seconds_per_token(every)
    first = [each.seconds_prefill for each in every]
    drafted = acceptance(measured.generations)
    rate = speed(measured)
    return {
        "tokens": sum(len(each.token_ids) for each in measured.generations),
        "tokens_per_second": None if rate is None else asdict(rate),
        "seconds_to_first_token": _percentiles(first),
        "seconds_per_token": _percentiles(per_token),
        "acceptance": None if drafted is None else asdict(drafted),
        "acceptance_by_position": acceptance_by_position(measured.generations),
        "peak_memory_bytes": measured.memory.bytes,
    }


def _decoding(measured: Measured) -> tuple[Counts, Counts]:
    """Return tokens and seconds (P,) of each prompt, prefill apart; seconds are the median run."""
    tokens = [each.num_decoded for each in measured.generations]
    return _counts(tokens), _medians(measured, lambda each: each.seconds_decode)


def _medians(measured: Measured, value: Callable[[Generation], float]) -> Counts:
    return np.median([[value(each) for each in repeat] for repeat in measured.repeats], axis=0)


def _counts(values: Sequence[int]) -> Counts:
    return np.array(values, dtype=np.float64)


def _seconds_per_token(generations: Sequence[Generation]) -> list[float]:
    """Return for each token after the first round its share of its round's seconds."""
    return [
        r.seconds / len(r.tokens) for each in generations for r in each.rounds[1:] for _ in r.tokens
    ]


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95 = np.quantile(values, (0.5, 0.95))
    return {"p50": float(p50), "p95": float(p95)}
