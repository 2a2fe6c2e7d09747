"""The search of `tune`: predict all settings from a little, then halve the rest by measuring.

Successive halving (Jamieson and Talwalkar, 2016): all candidates are measured on few prompts, the
better half on twice as many, and so on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Setting = tuple[int, int]
"""Exit layer and draft length."""
CANDIDATES = 8
"""So many are measured; the others are only predicted to be slower."""
FIRST_PROMPTS = 2


@dataclass(frozen=True, slots=True)
class Rung:
    """One round of the search: the speedups of its settings on so many prompts."""

    prompts: int
    speedups: Mapping[Setting, float]


def predicted_speedup(acceptance: float, draft_cost: float, length: int) -> float:
    """Return what drafting promises if acceptances are independent (arXiv 2211.17192, theorem 3.8).

    Verification is taken to cost what one token of plain decoding costs, which flatters long
    drafts: good for leaving out the hopeless, not for choosing.

    Args:
        acceptance: share of tokens that the exit would have drafted rightly.
        draft_cost: of one drafted token, in tokens of plain decoding.
        length: drafts of a round.
    """
    tokens = sum(acceptance**drafts for drafts in range(length + 1))
    return tokens / (length * draft_cost + 1)


def candidates(
    acceptance: Mapping[int, float],
    draft_cost: Mapping[int, float],
    lengths: Sequence[int],
    most: int = CANDIDATES,
) -> list[Setting]:
    """Return the most promising settings, best first.

    Args:
        acceptance: by exit.
        draft_cost: by exit.
        lengths: of drafts, to be tried with each exit.
        most: how many settings to return.
    """
    promise = {
        (e, k): predicted_speedup(acceptance[e], draft_cost[e], k)
        for e in acceptance
        for k in lengths
    }
    return sorted(promise, key=lambda setting: -promise[setting])[:most]


def halve(
    settings: Sequence[Setting],
    measure: Callable[[Sequence[Setting], int], Mapping[Setting, float]],
    num_prompts: int,
) -> list[Rung]:
    """Measure settings in rungs until one is left.

    Args:
        settings: at least one.
        measure: speedups of settings on the first so many prompts.
        num_prompts: how many there are; no rung has more.

    Returns:
        The rungs; the last one's fastest setting has won.
    """
    rungs, left, prompts = list[Rung](), list(settings), min(FIRST_PROMPTS, num_prompts)
    while True:
        speedups = measure(left, prompts)
        rungs.append(Rung(prompts, speedups))
        left = sorted(left, key=lambda setting: -speedups[setting])[: (len(left) + 1) // 2]
        if len(left) == 1:
            return rungs
        prompts = min(2 * prompts, num_prompts)
