"""A number per exit or layer over a whole run, as a picture: depth upwards, steps rightwards."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

MAX_COLUMNS = 256


class StepHistory:
    """The past of `depth` numbers in at most `MAX_COLUMNS` columns of equally many steps.

    When the columns are full, neighbours are merged, so memory stays bounded in any run.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._sums: list[NDArray[np.float64]] = []
        self._counts: list[int] = []
        self._width = 1  # steps a column
        self._first = self._last = 0

    def add(self, step: int, values: Sequence[float]) -> None:
        """Add the `depth` values of one step; steps ascend."""
        if not self._sums:
            self._first = step
        self._last = step
        if self._counts and self._counts[-1] < self._width:
            self._sums[-1] = self._sums[-1] + np.asarray(values, dtype=np.float64)
            self._counts[-1] += 1
            return
        if len(self._counts) == MAX_COLUMNS:
            self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
            self._counts = [2 * self._width] * (MAX_COLUMNS // 2)
            self._width *= 2
        self._sums.append(np.asarray(values, dtype=np.float64))
        self._counts.append(1)

    @property
    def means(self) -> NDArray[np.float64]:
        """(depth, columns) mean of each column's steps."""
        if not self._sums:
            return np.zeros((self._depth, 0))
        return np.stack(self._sums, axis=1) / np.asarray(self._counts, dtype=np.float64)

    @property
    def steps(self) -> tuple[int, int]:
        """First and last step added."""
        return self._first, self._last


def heat_map(
    history: StepHistory, *, first: int, title: str, ylabel: str, top: float | None = None
) -> NDArray[np.uint8]:
    """Draw a history that is not empty.

    Args:
        history: what to draw.
        first: name of the lowest row: 1 for exits, 0 for layers.
        title: what the colour means.
        ylabel: what the rows are.
        top: value of the brightest colour; default: the largest value.

    Returns:
        (height, width, 3) pixels.
    """
    means, (start, stop) = history.means, history.steps
    depth = len(means)
    # Small and with large letters: TensorBoard shows pictures scaled down.
    figure = Figure(figsize=(4.8, 1.5 + 0.11 * depth), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(
        means,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="cividis",  # the same to colour-blind eyes
        vmin=0,
        vmax=max(float(means.max()), 1e-9) if top is None else top,
        extent=(start - 0.5, stop + 0.5, first - 0.5, first + depth - 0.5),
    )
    axes.set(xlabel="step", ylabel=ylabel)
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.colorbar(image, ax=axes)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()
