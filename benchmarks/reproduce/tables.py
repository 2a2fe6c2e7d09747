"""The outcomes as Markdown tables: means over seeds with 95% intervals."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.lines import text_table
from benchmarks.reproduce.arms import ABLATION, ARMS, CURRICULA, PLAIN, Arm
from benchmarks.reproduce.gather import Outcome, of_arm
from benchmarks.reproduce.intervals import Mean, difference, mean, perplexity


def exits_table(outcomes: Sequence[Outcome]) -> str:
    """Return the perplexity of every exit, for every arm."""
    exits = sorted(outcomes[0].last)
    rows = []
    for arm in ARMS:
        found = of_arm(outcomes, arm.name)
        rows.append([arm.title, *(_perplexity([each.last[e] for each in found]) for e in exits)])
    return text_table(["valid perplexity at exit", *map(str, exits)], rows)


def _perplexity(losses: Sequence[float]) -> str:
    value, low, high = perplexity(mean(losses))
    return f"{_three(value)} ({_three(low)}-{_three(high)})"


def _three(value: float) -> str:
    """Return three digits that matter, without an exponent below a million."""
    return (
        f"{value:.1f}" if 10 <= value < 1000 else f"{value:.3g}" if value < 10 else f"{value:.0f}"
    )


def cost_table(outcomes: Sequence[Outcome], flops: Mapping[str, float]) -> str:
    """Return what each part of the recipe costs the last layer, and what it saves or adds.

    Args:
        outcomes: of all runs.
        flops: of one run of each arm.
    """
    return _cost_table(outcomes, flops, ABLATION)


def curricula_table(outcomes: Sequence[Outcome], flops: Mapping[str, float]) -> str:
    """Return the same for the curricula, all of them with layer dropout."""
    return _cost_table(outcomes, flops, CURRICULA)


def _cost_table(
    outcomes: Sequence[Outcome], flops: Mapping[str, float], arms: Sequence[Arm]
) -> str:
    plain = of_arm(outcomes, PLAIN.name)
    last = max(plain[0].last)
    middle = last // 2
    rows = []
    for arm in arms:
        found = of_arm(outcomes, arm.name)
        cost = difference([each.last[last] for each in found], [each.last[last] for each in plain])
        rows.append(
            [
                arm.title,
                _perplexity([each.last[last] for each in found]),
                "-" if arm is PLAIN else signed(cost),
                _perplexity([each.last[middle] for each in found]),
                f"{flops[arm.name] / flops[PLAIN.name]:.2f}",
            ]
        )
    columns = ["trained with", "perplexity, last", "nats over plain", f"perplexity, exit {middle}"]
    return text_table([*columns, "FLOPs of plain"], rows)


def signed(change: Mean) -> str:
    """Return a change with its interval; in bold if the interval leaves 0 out."""
    text = f"{change.value:+.3f} ± {change.half:.3f}"
    return f"**{text}**" if change.is_clear else text


def decoding_table(outcomes: Sequence[Outcome]) -> str:
    """Return the best setting of each arm, by its mean speedup over seeds."""
    rows = []
    for arm in ARMS:
        found = of_arm(outcomes, arm.name)
        settings = sorted(found[0].drafts)
        if not settings:
            continue
        by_speed = {s: mean([each.drafts[s].speedup for each in found]) for s in settings}
        best = max(settings, key=lambda s: by_speed[s].value)
        acceptance = mean([each.drafts[best].acceptance for each in found])
        same = all(drafted.same_output for each in found for drafted in each.drafts.values())
        rows.append(
            [
                arm.title,
                *best,
                f"{acceptance.value:.3f} ± {acceptance.half:.3f}",
                f"{by_speed[best].value:.2f} ± {by_speed[best].half:.2f}",
                "yes" if same else "NO",
            ]
        )
    return text_table(
        ["trained with", "best exit", "drafts", "acceptance", "speedup", "same tokens"], rows
    )


def grid_table(outcomes: Sequence[Outcome], arms: Sequence[Arm] = ABLATION) -> str:
    """Return acceptance and speedup of every exit and draft length, means over seeds."""
    settings = sorted(outcomes[0].drafts)
    rows = []
    for e, k in settings:
        row: list[object] = [e, k]
        for arm in arms:
            found = [each.drafts[e, k] for each in of_arm(outcomes, arm.name)]
            accepted = statistics.fmean(each.acceptance for each in found)
            gain = statistics.fmean(each.speedup for each in found)
            row.append(f"{accepted:.2f} {gain:.2f}x")
        rows.append(row)
    return text_table(["exit", "drafts", *(arm.title for arm in arms)], rows)
