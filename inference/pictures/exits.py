"""A text with each token in the colour of the first exit that predicts it."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

COLUMNS = 84
"""Characters a line."""
POINTS, WIDTH, HEIGHT = 9.0, 0.0753, 0.235
"""Size of the letters; inches of one letter of it, and of one line."""
WHITE = (1.0, 1.0, 1.0, 1.0)
UNSEEN = "·"
"""Stands for a control character, and for a token that adds nothing yet: part of a character."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A token, or a part of one, in a line."""

    line: int
    column: int
    text: str
    token: int | None
    """Index of the token; None for the prompt."""


def cells(prompt: str, pieces: Sequence[str], columns: int = COLUMNS) -> list[Cell]:
    """Return where everything stands; lines break where the text does, and where they are full."""
    found, line, column = list[Cell](), 0, 0
    for token, text in [(None, prompt), *enumerate(pieces)]:
        for part in _parts(text):
            start = 0
            while start < len(part):
                if column >= columns:
                    line, column = line + 1, 0
                cut = part[start : start + columns - column]
                found.append(Cell(line, column, cut, token))
                start, column = start + len(cut), column + len(cut)
            if part.endswith("⏎"):
                line, column = line + 1, 0
    return found


def _parts(text: str) -> Iterator[str]:
    """Yield the lines of a text, line breaks made visible; a dot for nothing."""
    spaced = text.replace("\t", "    ").replace("\r", "")
    visible = "".join(c if c.isprintable() or c == "\n" else UNSEEN for c in spaced)
    *whole, last = visible.split("\n")
    yield from (line + "⏎" for line in whole)
    if last or not whole:
        yield last or UNSEEN


def save_exits(
    prompt: str, pieces: Sequence[str], exits: Sequence[int], depth: int, title: str, path: Path
) -> None:
    """Draw a text.

    Args:
        prompt: shown without colour.
        pieces: what each token adds to the text.
        exits: 1..depth for each token.
        depth: the last exit.
        title: the model.
        path: the PNG to write.
    """
    placed = cells(prompt, pieces)
    lines = placed[-1].line + 1
    columns = max(60, *(cell.column + len(cell.text) for cell in placed))  # room for the title
    size = (columns * WIDTH + 1.1, lines * HEIGHT + 0.7)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scale = ScalarMappable(Normalize(1, max(depth, 2)), matplotlib.colormaps["viridis_r"])
    colours = [tuple(row) for row in scale.to_rgba(np.arange(1, depth + 1)).tolist()]
    for cell in placed:
        colour, ink = WHITE, "0.35"
        if cell.token is not None:
            colour = colours[exits[cell.token] - 1]
            ink = "black" if _is_light(colour) else "white"
        corner, width = (cell.column, cell.line), len(cell.text)
        axes.add_patch(Rectangle(corner, width, 1, facecolor=colour, edgecolor="white", lw=0.6))
        for offset, letter in enumerate(cell.text):  # a grid, whatever font a letter needs
            axes.text(
                cell.column + offset + 0.5,
                cell.line + 0.52,
                letter,
                ha="center",
                va="center",
                family="monospace",
                fontsize=POINTS,
                color=ink,
                parse_math=False,
            )
    axes.set(xlim=(0, columns), ylim=(lines, 0))
    axes.set_axis_off()
    axes.set_title(f"{title}: first exit that predicts each token", fontsize=9)
    ticks = MaxNLocator(integer=True)
    figure.colorbar(scale, ax=axes, label="exit", ticks=ticks, aspect=12, pad=0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        figure.savefig(path)


def _is_light(colour: Sequence[float]) -> bool:
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
