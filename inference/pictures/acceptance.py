"""Acceptance by position of the draft, as bars."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE = "#0072B2"
"""Okabe and Ito: told apart by colour-blind eyes."""


def save_acceptance(shares: Sequence[float], name: str, path: Path) -> None:
    """Draw in how many rounds the first 1, 2, ... drafts were all accepted.

    Args:
        shares: as `inference.measure.figures.acceptance_by_position` returns them.
        name: of the way of decoding.
        path: the PNG to write.
    """
    figure = Figure(figsize=(max(4.0, 0.6 * len(shares) + 2), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    positions = range(1, len(shares) + 1)
    bars = axes.bar(positions, shares, color=BLUE)
    axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set(
        title=name,
        xlabel="so many first drafts all accepted",
        ylabel="share of rounds",
        ylim=(0, 1.08),
        xticks=list(positions),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
