"""The executor: the only loop over layers in the repository.

Letters: B rows, S positions, D width, K selected items.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.plan import LayerPlan, Parts, Selection, Visit
from models.tokens import Tokens

Call = Callable[[nn.Module, Tensor, Tokens, Parts], Tensor]
"""How a layer is called: plainly, or with recomputation of its activations."""


def plain_call(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
    """Call the layer on h (B, S, D).

    What comes with h goes by name: hooks on a layer are to see the one tensor with a gradient.
    """
    return cast(Tensor, layer(h, tokens=tokens, parts=parts))


def visit(v: Visit, layer: nn.Module, h: Tensor, tokens: Tokens, call: Call = plain_call) -> Tensor:
    """Run one layer on the items that the visit's gate selects; the others pass through.

    Args:
        v: which parts run, on what.
        layer: called whole, because it is what FSDP, compile and recomputation wrap.
        h: (B, S, D) residual stream.
        tokens: positions (B, S) and cache; cut to the selection before the layer sees them.
        call: how the layer is called.

    Returns:
        (B, S, D); items that were not selected are bitwise equal to `h`.
    """
    if v.gate is None:
        return call(layer, h, tokens, v.parts)
    selection = v.gate(h)
    if selection.rows is None:
        return _tokens(selection, layer, h, tokens.take(selection), v.parts, call)
    rest, some = _Take.apply(h, selection.rows)  # type: ignore[no-untyped-call]
    out = _tokens(selection, layer, some, tokens.take(selection), v.parts, call)
    return cast(Tensor, _PutBack.apply(rest, out, selection.rows))  # type: ignore[no-untyped-call]


class _Take(torch.autograd.Function):
    """Takes rows (K, S, D) out of the stream (B, S, D); `_PutBack` has to fill their places.

    Together they are `index_select` and `index_copy`, with half the memory traffic backward: what
    arrives here for the taken rows by the way around the layer is overwritten, not added to, so
    nobody needs to clear it.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return h.view_as(h), h.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, rest: Tensor, some: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return rest.index_copy(0, rows, some), None


class _PutBack(torch.autograd.Function):
    """Fills the places of the stream (B, S, D) that `_Take` has taken rows (K, S, D) out of."""

    @staticmethod
    def forward(ctx: Any, rest: Tensor, out: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rest.index_copy(0, rows, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad, grad.index_select(0, rows), None


def _tokens(
    selection: Selection, layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts, call: Call
) -> Tensor:
    """Run the layer on the selected positions of h (B, S, D), weighted; tokens are cut already."""
    if selection.tokens is None:
        return _weighted(h, call(layer, h, tokens, parts), selection.weight)
    index = selection.tokens[..., None].expand(-1, -1, h.shape[-1])  # (B, K, D)
    some = h.gather(1, index)
    out = _weighted(some, call(layer, some, tokens, parts), selection.weight)
    return h.scatter(1, index, out)  # (B, S, D)


def _weighted(h: Tensor, out: Tensor, weight: Tensor | None) -> Tensor:
    """Scale what the layer added to h (B, K, D) by weight (B, K)."""
    return out if weight is None else h + weight[..., None] * (out - h)


def run_plan(
    plan: LayerPlan,
    layers: nn.ModuleDict,
    h: Tensor,
    tokens: Tokens,
    call: Call = plain_call,
) -> dict[int, Tensor]:
    """Run the visits of a plan in order.

    Args:
        plan: the visits and the exits wanted.
        layers: modules by global layer id, as strings.
        h: (B, S, D) residual stream that enters the first visit.
        tokens: side data of the S positions.
        call: how a layer is called.

    Returns:
        For each exit of the plan, its residual stream (B, S, D), not yet normed.
    """
    points = plan.exit_points
    taken = dict.fromkeys(points.get(0, ()), h)
    for index, v in enumerate(plan.visits, start=1):
        h = visit(v, layers[str(v.layer)], h, tokens, call)
        taken |= dict.fromkeys(points.get(index, ()), h)
    return {e: taken[e] for e in plan.exits}
