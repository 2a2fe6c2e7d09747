"""The quickstart's result as one picture: curves, perplexity by exit, decoding speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from benchmarks.report import Report

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito: told apart by colour-blind eyes

Colour = NDArray[np.float64]


def save_picture(report: Report, lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a report.

    Args:
        report: what was measured.
        lines: `metrics.jsonl`, as `trainer.metrics.read_metrics` returns it.
        path: the PNG to write.
    """
    figure = Figure(figsize=(15, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    curves, bars, speed = figure.subplots(1, 3, width_ratios=[1.5, 1.2, 0.8])
    num_exits = max(report.perplexity_per_exit)
    scale = ScalarMappable(Normalize(1, num_exits), matplotlib.colormaps["viridis_r"])
    exits = list(report.perplexity_per_exit)
    colours = dict(zip(exits, scale.to_rgba(np.array(exits)), strict=True))
    _curves(curves, lines, colours)
    figure.colorbar(
        scale, ax=curves, label="exit", ticks=MaxNLocator(integer=True), aspect=30, pad=0.01
    )
    _perplexity(bars, report, colours)
    _speed(speed, report)
    figure.suptitle(
        f"Skipstone quickstart: {report.num_parameters / 1e6:.1f}M parameters, {num_exits} "
        f"layers, {report.steps} steps, {report.tokens_seen / 1e6:.1f}M tokens"
    )
    figure.savefig(path)


def _curves(axes: Axes, lines: Sequence[Mapping[str, Any]], colours: Mapping[int, Colour]) -> None:
    for kind, style in (
        ("train", {"linewidth": 0.6, "alpha": 0.35}),
        ("valid", {"linewidth": 1.6, "marker": "o", "markersize": 3.5}),
    ):
        points: dict[int, list[tuple[int, float]]] = {}
        for line in lines:
            if line["kind"] == kind:
                for e, loss in line["loss_per_exit"].items():
                    points.setdefault(e, []).append((line["step"], loss))
        for e, curve in sorted(points.items()):
            axes.plot(*zip(*curve, strict=True), color=colours[e], **style)
    axes.plot([], [], color="0.4", linewidth=0.6, alpha=0.6, label="train")
    axes.plot([], [], color="0.4", linewidth=1.6, marker="o", markersize=3.5, label="valid")
    axes.legend(frameon=False)
    axes.set(title="Loss at each exit", xlabel="step", ylabel="nats a token")
    axes.grid(alpha=0.25)


def _perplexity(axes: Axes, report: Report, colours: Mapping[int, Colour]) -> None:
    exits = sorted(report.perplexity_per_exit)
    values = [report.perplexity_per_exit[e] for e in exits]
    bars = axes.bar(exits, values, color=[colours[e] for e in exits])
    labels = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    axes.bar_label(bars, labels, fontsize=8, padding=2)
    drafting = bars[exits.index(report.exit_layer)]
    drafting.set(edgecolor=ORANGE, linewidth=2.5)
    axes.plot([], [], "s", markerfacecolor="none", color=ORANGE, label="drafts")
    axes.legend(frameon=False)
    axes.set(title="Valid perplexity at each exit", xlabel="exit (layers run)", xticks=exits)
    axes.spines[["top", "right"]].set_visible(False)


def _speed(axes: Axes, report: Report) -> None:
    names = ("autoregressive", "self_speculative")
    values = [report.tokens_per_second[name] for name in names]
    bars = axes.bar(["autoregressive", "self-\nspeculative"], values, color=[BLUE, ORANGE])
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set(ylabel="tokens/s", ylim=(0, 1.15 * max(values)))
    axes.set_title(f"Decoding: {report.speedup:.2f}x, {report.acceptance_rate:.0%} accepted")
    axes.spines[["top", "right"]].set_visible(False)
