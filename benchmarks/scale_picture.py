"""`python -m benchmarks.scale_picture FILE`: what skipped collectives are worth, as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.accelerators import CLUSTERS
from benchmarks.scale import row
from benchmarks.scale_setups import RANKS, setups

CLUSTER, MODEL = "H100", "Llama 2 7B"
ROWS = (4, 1)
"""Of each rank: a panel each."""
SHARDINGS = {"FSDP": "#0072B2", "hybrid": "#D55E00", "ZeRO-1": "#009E73"}  # Okabe and Ito


def picture() -> Figure:
    """Return the time saved by dropping half of the layers, over the number of accelerators."""
    cluster = next(c for c in CLUSTERS if CLUSTER in c.name)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, len(ROWS), sharey=True)
    for axes, rows in zip(panels, ROWS, strict=True):
        found = [row(setup) for setup in setups(cluster, [MODEL], rows=rows)]
        _panel(axes, found)
        axes.set_title(f"{rows} rows of 4096 a rank" if rows > 1 else "1 row of 4096 a rank")
    panels[0].set_ylabel("share of the step saved")
    panels[0].legend(fontsize=7, loc="lower left")
    figure.suptitle(f"{MODEL}, {cluster.name}: half of the layers dropped (model, not measured)")
    return figure


def _panel(axes: Any, found: Sequence[dict[str, Any]]) -> None:
    axes.axhline(found[0]["half_flops_skipped"], color="gray", linestyle=":", label="FLOPs skipped")
    for name, color in SHARDINGS.items():
        some = [figures for figures in found if figures["sharding"] == name and figures["fits"]]
        ranks = [figures["accelerators"] for figures in some]
        for key, line, text in (("", "-", ""), ("_without_skipping", "--", ", not skipped")):
            saved = [figures[f"half_time_saved{key}"] for figures in some]
            axes.plot(ranks, saved, line, color=color, marker=".", label=name + text)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, [str(ranks) for ranks in RANKS])
    axes.set_xlabel("accelerators")
    axes.set_ylim(-0.05, 0.6)


def main(arguments: Sequence[str]) -> None:
    """Write the picture to a file."""
    if len(arguments) != 1:
        raise ValueError("name one file to write, such as docs/scale.png")
    picture().savefig(Path(arguments[0]), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
