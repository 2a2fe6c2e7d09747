"""The outcomes as pictures: means over seeds, with bands from the lowest seed to the highest."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from benchmarks.reproduce.arms import ABLATION, ARMS, Arm
from benchmarks.reproduce.gather import Drafted, Outcome, of_arm, trained
from benchmarks.reproduce.tables import expected
from models.config import LlamaConfig

COLOURS = {  # Okabe and Ito
    "plain": "#000000",
    "dropout": "#E69F00",
    "exit_loss": "#56B4E9",
    "both": "#D55E00",
    "gradual": "#009E73",
    "all_exits": "#CC79A7",
}


def save_exits(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw perplexity over exits: the parts of the recipe, and its curricula."""
    figure = _figure(10, 3.8)
    axes = figure.subplots(1, 2, sharey=True)
    exits = sorted(outcomes[0].last)
    for panel, arms in zip(axes, (ABLATION, (*ABLATION[:1], *ARMS[3:])), strict=True):
        for arm in trained(outcomes, arms):
            _line(panel, outcomes, arm, exits, lambda each, e: math.exp(each.last[e]))
        panel.set_xlabel("exit")
        _log(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(frameon=False)
    axes[0].set(title="The parts of the recipe", ylabel="perplexity on held-out text")
    axes[1].set(title="Its curricula")
    figure.savefig(path)


def save_middle(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the perplexity of the middle exit, and of the last, over training tokens."""
    figure = _figure(10, 3.8)
    axes = figure.subplots(1, 2)
    steps = sorted(outcomes[0].losses)
    last = max(outcomes[0].last)
    for panel, e in zip(axes, (last // 2, last), strict=True):
        for arm in trained(outcomes, ABLATION):
            _line(
                panel,
                outcomes,
                arm,
                steps,
                lambda each, step, e=e: math.exp(each.losses[step][e]),
                scale=outcomes[0].tokens_a_step / 1e6,
            )
        panel.set(title=f"Exit {e} of {last}", xlabel="million tokens trained on")
        _log(panel)
        panel.legend(frameon=False)
    axes[0].set_ylabel("perplexity on held-out text")
    figure.savefig(path)


def save_decoding(outcomes: Sequence[Outcome], model: LlamaConfig, path: Path) -> None:
    """Draw acceptance over exits, and the speedup of the best draft length.

    The speedup is that where reading weights is the limit.
    """
    figure = _figure(10, 3.8)
    axes = figure.subplots(1, 2)
    exits = sorted({e for e, _ in outcomes[0].drafts})
    lengths = sorted({k for _, k in outcomes[0].drafts})
    for arm in trained(outcomes, ARMS):
        middle = lengths[len(lengths) // 2]
        _line(axes[0], outcomes, arm, exits, lambda o, e, k=middle: o.drafts[e, k].acceptance)
        _line(
            axes[1],
            outcomes,
            arm,
            exits,
            lambda o, e: max(expected(model, (e, k), o.drafts[e, k]) for k in lengths),
        )
    axes[0].set(title=f"Acceptance of {lengths[len(lengths) // 2]} drafts", ylim=(0, 1))
    axes[1].set(title="Best speedup where reading is the limit")
    axes[1].axhline(1.0, color="0.5", linestyle=":")
    axes[1].legend(frameon=False, fontsize=8)
    for panel in axes:
        panel.set_xlabel("exit that drafts")
        panel.set_xticks(exits)
    figure.savefig(path)


def save_before_and_after(
    scores: Mapping[str, Mapping[int, tuple[float, float]]],
    drafts: Mapping[str, Mapping[tuple[int, int], Drafted]],
    path: Path,
) -> None:
    """Draw one model before and after its training: perplexity of exits, agreement, speedup.

    Args:
        scores: perplexity and agreement by exit, of each state.
        drafts: what each setting of self-speculation gave, of each state.
        path: the PNG to write.
    """
    figure = _figure(12, 3.8)
    perplexity, agreement, speed = figure.subplots(1, 3)
    for (name, found), colour in zip(scores.items(), ("#000000", "#D55E00"), strict=True):
        exits = sorted(found)
        perplexity.plot(exits, [found[e][0] for e in exits], color=colour, label=name)
        agreement.plot(exits, [found[e][1] for e in exits], color=colour, label=name)
        drafting = sorted({e for e, _ in drafts[name]})
        best = [max(d.speedup for (e, _), d in drafts[name].items() if e == x) for x in drafting]
        speed.plot(drafting, best, color=colour, marker="o", label=name)
    perplexity.set(title="Perplexity on held-out text", yscale="log")
    agreement.set(title="Agreement with the last layer", ylim=(0, 1))
    speed.set(title="Speedup at the best draft length")
    speed.axhline(1.0, color="0.5", linestyle=":")
    for panel in (perplexity, agreement, speed):
        panel.set_xlabel("exit")
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)
    figure.savefig(path)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _log(axes: Axes) -> None:
    """Make the y axis logarithmic, within a decade or little more, with plain numbers on it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())


def _line(
    axes: Axes,
    outcomes: Sequence[Outcome],
    arm: Arm,
    at: Sequence[int],
    value: Callable[..., float],
    scale: float = 1.0,
) -> None:
    found = of_arm(outcomes, arm.name)
    values: Mapping[int, list[float]] = {x: [value(each, x) for each in found] for x in at}
    xs = [x * scale for x in at]
    colour = COLOURS[arm.name]
    middles = [statistics.fmean(values[x]) for x in at]
    axes.plot(xs, middles, color=colour, marker="o", markersize=3, label=arm.title)
    lows, highs = [min(values[x]) for x in at], [max(values[x]) for x in at]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.25)
