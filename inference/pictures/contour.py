"""Speedup over exit layer and draft length: contours, or a curve where one of them is fixed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
BOX: dict[str, Any] = {
    "ha": "center",
    "va": "center",
    "bbox": {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
}
"""Figures stand on white, so that they can be read on any colour."""

Speedups = Mapping[tuple[int, int], float]
"""By exit layer and draft length."""


def save_contour(speedups: Speedups, title: str, path: Path) -> None:
    """Draw a grid of speedups; every exit has every draft length.

    Args:
        speedups: of all settings.
        title: what was measured.
        path: the PNG to write.
    """
    exits, lengths = (sorted({key[i] for key in speedups}) for i in (0, 1))
    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if len(exits) > 1 and len(lengths) > 1:
        _contour(figure, axes, speedups, exits, lengths)
    else:
        _curve(axes, speedups, exits, lengths)
    axes.set_title(title, fontsize=9)
    figure.savefig(path)


def _contour(
    figure: Figure, axes: Axes, speedups: Speedups, exits: Sequence[int], lengths: Sequence[int]
) -> None:
    grid = np.array([[speedups[e, k] for e in exits] for k in lengths])
    low, high = min(grid.min(), 0.99), max(grid.max(), 1.01)
    norm = TwoSlopeNorm(1.0, low, high)  # the colour turns where plain decoding is as fast
    filled = axes.contourf(exits, lengths, grid, 14, cmap="RdBu", norm=norm)
    if grid.min() < 1 < grid.max():
        axes.contour(exits, lengths, grid, [1.0], colors="black", linewidths=1.2)
    best = max(speedups, key=lambda key: speedups[key])
    for (e, k), value in speedups.items():
        weight = "bold" if (e, k) == best else "normal"
        axes.text(e, k, f"{value:.2f}", fontsize=7, weight=weight, **BOX)
    figure.colorbar(filled, ax=axes, label="speedup over autoregressive")
    axes.set(xlabel="exit layer", ylabel="draft length", xticks=exits, yticks=lengths)
    for values, limits in ((exits, axes.set_xlim), (lengths, axes.set_ylim)):
        room = 0.07 * (values[-1] - values[0])  # for the figures at the edges
        limits(values[0] - room, values[-1] + room)


def _curve(axes: Axes, speedups: Speedups, exits: Sequence[int], lengths: Sequence[int]) -> None:
    along, label = (exits, "exit layer") if len(exits) > 1 else (lengths, "draft length")
    values = [speedups[key] for key in sorted(speedups)]
    axes.plot(along, values, "o-", color=BLUE)
    axes.axhline(1.0, color=ORANGE, linewidth=1)
    axes.set(xlabel=label, ylabel="speedup over autoregressive", xticks=list(along))
    axes.grid(alpha=0.25)
