"""Run plans as `models.execute.run_plan` does, but all visits between two exits in one call.

Letters: B rows, S positions, D width.
"""

from typing import cast

from torch import Tensor, nn

from inference.fast.layer import WHAT, FastLayer
from inference.fast.linear import kernel
from inference.fast.passes import Passes
from inference.fast.segment import Segment
from models.execute import Call, plain_call, run_plan
from models.plan import LayerPlan
from models.tokens import Tokens

MOST_PLANS = 32
"""So many plans are remembered, cut into segments."""

Cut = list[tuple[Segment | None, list[int]]]
"""Segments, and the exits after each of them; None runs nothing."""


class Runner:
    """Takes the place of the executor in a model's inference form, which stays its oracle.

    Whatever our kernels cannot run as a whole, such as a gate or a layer that is split over ranks,
    goes to the executor.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._cuts: dict[int, tuple[LayerPlan, Cut | None]] = {}

    def __call__(
        self,
        plan: LayerPlan,
        layers: nn.ModuleDict,
        h: Tensor,
        tokens: Tokens,
        call: Call = plain_call,
    ) -> dict[int, Tensor]:
        """Return the residual stream (B, S, D) at each exit; see `models.execute.run_plan`."""
        cut = self._cut(plan, layers)
        if cut is None or call is not plain_call or not _first(plan, layers).takes(h, tokens):
            return run_plan(plan, layers, h, tokens, call)
        taken: dict[int, Tensor] = {}
        for segment, exits in cut:
            h = h if segment is None else segment.run(h, tokens)
            taken |= dict.fromkeys(exits, h)
        return taken

    def _cut(self, plan: LayerPlan, layers: nn.ModuleDict) -> Cut | None:
        """Return the plan as segments, None if it cannot be; by identity, as plans hash slowly."""
        known = self._cuts.get(id(plan))
        if known is None or known[0] is not plan:
            if len(self._cuts) >= MOST_PLANS:
                self._cuts.clear()
            known = self._cuts[id(plan)] = (plan, self._made(plan, layers))
        return known[1]

    def _made(self, plan: LayerPlan, layers: nn.ModuleDict) -> Cut | None:
        chosen = [(cast(FastLayer, layers[str(visit.layer)]), visit) for visit in plan.visits]
        if not chosen or any(not _fits(layer) or v.gate is not None for layer, v in chosen):
            return None
        call = kernel("layers", chosen[0][0].input_layernorm.weight.dtype)
        points = sorted(plan.exit_points.items())
        done, cut = 0, Cut()
        for end, exits in points:
            some = [
                (layer.layer, layer.struct, int(WHAT[visit.parts]))
                for layer, visit in chosen[done:end]
                if layer.struct is not None
            ]
            cut.append((Segment(some, call, self._passes) if some else None, exits))
            done = end
        return cut


def _fits(layer: FastLayer) -> bool:
    return layer.struct is not None and layer.is_whole


def _first(plan: LayerPlan, layers: nn.ModuleDict) -> FastLayer:
    return cast(FastLayer, layers[str(plan.visits[0].layer)])
