"""The picture of `benchmarks.decode`: a bar for each decoder, and what the memory allows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.picture import BLUE, ORANGE

GREY = "0.65"


def save_picture(
    rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float], name: str, path: Path
) -> None:
    """Draw the rows of `benchmarks.decode.rows_of` as a PNG; batches are not one at a time."""
    shown = [row for row in rows if "batch" not in row["decoder"]]
    figure = Figure(figsize=(9, 0.42 * len(shown) + 1.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [row["decoder"] for row in shown]
    values = [row["tokens_per_second"] for row in shown]
    errors = [
        [
            value - row[end] if end == "low" else row[end] - value
            for value, row in zip(values, shown, strict=True)
        ]
        for end in ("low", "high")
    ]
    bars = axes.barh(names, values, xerr=errors, color=[_colour(each) for each in names])
    axes.bar_label(bars, [f"{row['times_hugging_face']:.1f}x" for row in shown], padding=4)
    for (precision, limit), style in zip(limits.items(), ("--", ":"), strict=False):
        label = f"memory, {precision}, one token a pass"
        axes.axvline(limit, color="0.3", linestyle=style, label=label)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel="tokens/s, one prompt", title=name)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _colour(decoder: str) -> str:
    if not decoder.startswith("Skipstone"):
        return GREY
    return ORANGE if "drafts" in decoder else BLUE
