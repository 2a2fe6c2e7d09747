"""The outcomes as Markdown tables: means over seeds with 95% intervals."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.lines import text_table
from benchmarks.reproduce.arms import ABLATION, ARMS, CURRICULA, PLAIN, Arm
from benchmarks.reproduce.gather import Drafted, Outcome, of_arm, trained
from benchmarks.reproduce.intervals import Mean, difference, mean, perplexity
from models.config import LlamaConfig
from models.speculation import expected_speedup


def exits_table(outcomes: Sequence[Outcome]) -> str:
    """Return the perplexity of every exit, for every arm."""
    exits = sorted(outcomes[0].last)
    rows = []
    for arm in trained(outcomes, ARMS):
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
    for arm in trained(outcomes, arms):
        found = of_arm(outcomes, arm.name)
        row = [arm.title]
        for e in (last, middle):
            losses, others = ([each.last[e] for each in some] for some in (found, plain))
            change = "-" if arm is PLAIN else signed(difference(losses, others))
            row += [_perplexity(losses), change]
        rows.append([*row, f"{flops[arm.name] / flops[PLAIN.name]:.2f}"])
    columns = [f"perplexity, exit {last}", "nats over plain", f"exit {middle}", "nats over plain"]
    return text_table(["trained with", *columns, "FLOPs of plain"], rows)


def middle_table(outcomes: Sequence[Outcome]) -> str:
    """Return how far the middle exit's loss lies above the last one's, in nats, over training."""
    steps = sorted(outcomes[0].losses)
    last = max(outcomes[0].last)
    rows = []
    for arm in trained(outcomes, ARMS):
        found = of_arm(outcomes, arm.name)
        gaps = (
            mean([each.losses[step][last // 2] - each.losses[step][last] for each in found])
            for step in steps
        )
        rows.append([arm.title, *(f"{gap.value:.2f} ± {gap.half:.2f}" for gap in gaps)])
    millions = outcomes[0].tokens_a_step / 1e6
    tokens = [f"{step * millions:.2f}M" for step in steps]
    return text_table([f"exit {last // 2} over exit {last}, nats, after", *tokens], rows)


def signed(change: Mean) -> str:
    """Return a change with its interval; in bold if the interval leaves 0 out."""
    text = f"{change.value:+.3f} ± {change.half:.3f}"
    return f"**{text}**" if change.is_clear else text


def decoding_table(outcomes: Sequence[Outcome], model: LlamaConfig) -> str:
    """Return the best setting of each arm: as measured, and where reading weights is the limit.

    Args:
        outcomes: of all runs.
        model: their shape.
    """
    rows = []
    for arm in trained(outcomes, ARMS):
        found = of_arm(outcomes, arm.name)
        measured, limit = (
            {s: mean([value(each, s) for each in found]) for s in sorted(found[0].drafts)}
            for value in (_measured, lambda each, s: expected(model, s, each.drafts[s]))
        )
        best = max(measured, key=lambda s: measured[s].value)
        could = max(limit, key=lambda s: limit[s].value)
        same = all(drafted.same_output for each in found for drafted in each.drafts.values())
        rows.append(
            [
                arm.title,
                *_setting(found, could),
                _with_half(limit[could]),
                *_setting(found, best),
                _with_half(measured[best]),
                "yes" if same else "NO",
            ]
        )
    could_columns = ["exit, drafts", "accepted", "x if reading is the limit"]
    columns = [*could_columns, "exit, drafts", "accepted", "x measured", "same tokens"]
    return text_table(["trained with", *columns], rows)


def expected(model: LlamaConfig, setting: tuple[int, int], drafted: Drafted) -> float:
    """Return the speedup of an exit and draft length where reading weights is the limit."""
    exit_layer, drafts = setting
    accepted = drafted.acceptance * drafts
    return expected_speedup(model, exit_layer, rounds=1, drafted=drafts, accepted=accepted)


def _measured(each: Outcome, setting: tuple[int, int]) -> float:
    return each.drafts[setting].speedup


def _setting(found: Sequence[Outcome], setting: tuple[int, int]) -> tuple[str, str]:
    accepted = mean([each.drafts[setting].acceptance for each in found])
    return f"{setting[0]}, {setting[1]}", _with_half(accepted)


def _with_half(found: Mean) -> str:
    return f"{found.value:.2f} ± {found.half:.2f}"


def grid_table(outcomes: Sequence[Outcome], model: LlamaConfig) -> str:
    """Return acceptance, speedup where reading is the limit, and as measured, of every setting."""
    settings, arms = sorted(outcomes[0].drafts), trained(outcomes, ABLATION)
    rows = []
    for e, k in settings:
        row: list[object] = [e, k]
        for arm in arms:
            found = [each.drafts[e, k] for each in of_arm(outcomes, arm.name)]
            accepted = statistics.fmean(each.acceptance for each in found)
            limit = statistics.fmean(expected(model, (e, k), each) for each in found)
            gain = statistics.fmean(each.speedup for each in found)
            row.append(f"{accepted:.2f} {limit:.2f}x {gain:.2f}x")
        rows.append(row)
    return text_table(["exit", "drafts", *(arm.title for arm in arms)], rows)
