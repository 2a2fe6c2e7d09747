"""Who runs where, as data. A plan is a sequence of visits to layers; the executor runs it.

Letters: B rows, S positions, D width, K selected items, L layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Flag, auto
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor


class Parts(Flag):
    """The branches of one layer."""

    ATTN = auto()
    FFN = auto()
    BOTH = ATTN | FFN


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The items that one visit works on; all None means everything.

    Items that are not selected pass through the visit untouched.
    """

    rows: Tensor | None = None
    """(K,) sorted row ids: layer dropout, rows that exit earlier."""
    tokens: Tensor | None = None
    """(B, K) sorted positions, after `rows` was applied: Mixture-of-Depths, token routers."""
    weight: Tensor | None = None
    """(B, K), or (B, S) without `tokens`: scales what the layer adds; has a router's gradient."""


class Gate(Protocol):
    """Chooses the items of a visit, from the residual stream or ahead of time."""

    def __call__(self, h: Tensor) -> Selection:
        """Return the selection for the residual stream h (B, S, D)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A static gate: the rows that survive layer dropout, known before the step begins."""

    rows: Tensor
    """(K,) sorted row ids."""

    def __call__(self, h: Tensor) -> Selection:
        """Return the rows whatever h (B, S, D) is."""
        return Selection(rows=self.rows)


@dataclass(frozen=True, slots=True)
class Visit:
    """One call of one layer."""

    layer: int
    """Global id, from 0; the same in every pipeline stage and on every rank."""
    parts: Parts = Parts.BOTH
    gate: Gate | None = None
    """None runs everything."""

    @property
    def signature(self) -> tuple[int, int, str]:
        """What every rank must agree on: layer, parts, and how many rows (not which)."""
        if self.gate is None:
            items = "all"
        elif isinstance(self.gate, Rows):
            items = f"{self.gate.rows.numel()} rows"
        else:
            items = type(self.gate).__name__
        return self.layer, self.parts.value, items


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The visits of one forward pass in order, and the depths whose hidden states it returns."""

    visits: tuple[Visit, ...]
    exits: tuple[int, ...]
    """Exit e is the residual stream once all visits to layers below e are done; ascending."""

    def __post_init__(self) -> None:
        if not self.exits or list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"plan.exits must be ascending, unique, not empty: {self.exits}")

    @property
    def signature(self) -> tuple[tuple[int, int, str], ...]:
        """The visits as comparable data, equal on ranks that may share collectives."""
        return tuple(visit.signature for visit in self.visits)

    @property
    def exit_points(self) -> dict[int, list[int]]:
        """Which exits are complete once so many visits have run, and not earlier."""
        points: dict[int, list[int]] = {}
        for e in self.exits:
            done = max((i + 1 for i, v in enumerate(self.visits) if v.layer < e), default=0)
            points.setdefault(done, []).append(e)
        return points

    def to(self, device: torch.device) -> "LayerPlan":
        """Return the plan with its static row ids on a device, sent in one copy."""
        gates = [v.gate for v in self.visits if isinstance(v.gate, Rows)]
        if not gates or device.type == "cpu":
            return self
        counts = [gate.rows.numel() for gate in gates]
        moved = iter(torch.split(torch.cat([gate.rows for gate in gates]).to(device), counts))
        visits = tuple(
            replace(v, gate=Rows(next(moved))) if isinstance(v.gate, Rows) else v
            for v in self.visits
        )
        return replace(self, visits=visits)


def full(num_layers: int, *, start: int = 0, exits: Sequence[int] = ()) -> LayerPlan:
    """Return the plan that visits layers start..num_layers-1 in order; default exit: the last."""
    visits = tuple(Visit(layer) for layer in range(start, num_layers))
    return LayerPlan(visits, tuple(exits) or (num_layers,))


def ordered(layers: Iterable[int], *, num_layers: int) -> LayerPlan:
    """Return the plan that visits these layers in this order, and exits after the last of them."""
    return LayerPlan(tuple(Visit(layer) for layer in layers), (num_layers,))


def without(num_layers: int, *, attn: Iterable[int] = (), ffn: Iterable[int] = ()) -> LayerPlan:
    """Return the full plan less some attention and feed-forward branches (SWIFT, 2410.06916)."""
    no_attn, no_ffn = frozenset(attn), frozenset(ffn)
    visits = []
    for layer in range(num_layers):
        parts = Parts.BOTH
        if layer in no_attn:
            parts &= ~Parts.ATTN
        if layer in no_ffn:
            parts &= ~Parts.FFN
        if parts:
            visits.append(Visit(layer, parts))
    return LayerPlan(tuple(visits), (num_layers,))


def dropped(survivors: Sequence[Tensor | None], *, exits: Sequence[int] = ()) -> LayerPlan:
    """Return the plan of layer dropout.

    Args:
        survivors: for each layer the (K,) sorted rows that run it; None means every row. A layer
            that no row survives in is not visited at all.
        exits: exits to return; default: the last.
    """
    visits = tuple(
        Visit(layer, gate=None if rows is None else Rows(rows))
        for layer, rows in enumerate(survivors)
        if rows is None or rows.numel()
    )
    return LayerPlan(visits, tuple(exits) or (len(survivors),))


def shared_prefix(a: LayerPlan, b: LayerPlan) -> int:
    """Return how many first visits two plans share: what these compute for the one, the other has.

    Equal visits name the same layer, parts and gate.
    """
    pairs = zip(a.visits, b.visits, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
