"""torch has several ways to multiply a few rows by a matrix; which is fastest depends on the shape.

They differ by up to four times, and not the same way for one row and for eight, for float32 and
bfloat16. So each shape is timed once, with its own weights, when it first comes.

Letters: N features, K inputs, n rows.
"""

import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn.functional import linear

Multiply = Callable[[Tensor, Tensor], Tensor]
"""From rows (n, K) and weights (N, K) to (n, N)."""

MOST_ROWS = 64
"""Beyond them a product is compute, and `linear` is as good as any."""
REPEATS = 4


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    """Return (n, N) by the product the other way round of x (n, K) and weights (N, K)."""
    return (weight @ x.t()).t().contiguous()  # ranks that add it up ask for that


def one_row(x: Tensor, weight: Tensor) -> Tensor:
    """Return (1, N) of one row (1, K) and weights (N, K)."""
    return torch.mv(weight, x[0])[None]


def one_dnn(x: Tensor, weight: Tensor) -> Tensor:
    """Return (n, N) of x (n, K) and weights (N, K), as compiled models ask oneDNN for it."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


class Chooser:
    """What was found so far; layers of a model share one, as most have the same shapes."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.dtype, torch.Size, int], Multiply | None] = {}
        self._wins: dict[tuple[Hashable, ...], bool] = {}

    def fastest(
        self, x: Tensor, weight: Tensor, *, ours: Multiply | None = None
    ) -> Multiply | None:
        """Return the fastest way for so many rows (n, K), rounded up to a power of two.

        Args:
            x: (n, K).
            weight: (N, K).
            ours: a way to try beside torch's; None is returned if it is the fastest.
        """
        rows = 1 << max(x.shape[0] - 1, 0).bit_length()
        if x.device.type != "cpu" or rows > MOST_ROWS:
            return linear
        key = x.dtype, weight.shape, rows
        if key not in self._found:
            ways = [*_ways(x), *([] if ours is None else [ours])]
            best = min(ways, key=lambda way: _seconds(way, x, weight))
            self._found[key] = None if best is ours else best
        return self._found[key]

    def wins(
        self, what: tuple[Hashable, ...], ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
    ) -> bool:
        """Return whether ours is the faster of two ways to make (B, S, D), at first by trial."""
        if what not in self._wins:
            self._wins[what] = _best_time(ours) <= _best_time(theirs)
        return self._wins[what]


def _ways(x: Tensor) -> list[Multiply]:
    ways: list[Multiply] = [linear, transposed]
    if x.shape[0] == 1:
        ways.append(one_row)
    has_it = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if has_it and x.dtype in (torch.float32, torch.bfloat16):
        ways.append(one_dnn)
    return ways


def _seconds(way: Multiply, x: Tensor, weight: Tensor) -> float:
    return _best_time(lambda: way(x, weight))


def _best_time(call: Callable[[], Tensor]) -> float:
    """Return the best seconds of a few: others may be using the cores just now."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
