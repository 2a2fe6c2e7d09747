"""Named ranges of time, which the trace of a profiler shows; without a profiler they cost nothing.

Letters: B rows, S positions, D width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

from torch import Tensor, nn
from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

from models.execute import Call
from models.layer import Layer
from models.plan import Parts
from models.tokens import Tokens

BACKWARD = "backward "
"""What the name of a layer's range in the backward pass begins with."""


def named(name: str) -> AbstractContextManager[object]:
    """Return a context that a running profiler shows as a range of this name."""
    # A range that nobody records would still take 8 microseconds; asking takes half a one.
    return record_function(name) if _profiler_enabled() else nullcontext()


def in_ranges(call: Call) -> Call:
    """Return a way of calling layers that shows the forward and backward pass of each."""

    def ranged(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
        if not _profiler_enabled():
            return call(layer, h, tokens, parts)
        name = f"layer {cast(Layer, layer).self_attn.layer}"
        with record_function(name):
            out = call(layer, h, tokens, parts)
        if h.requires_grad and out.grad_fn is not None:
            _range_backward(BACKWARD + name, h, out)
        return out

    return ranged


def _range_backward(name: str, h: Tensor, out: Tensor) -> None:
    """Show the time from when the gradient of out (B, S, D) is known to when that of h is.

    Hooks and no autograd functions of our own: those would return views, on which the executor
    could not work in place. A hook of a node runs after all hooks of its tensor, such as the end of
    the layer above and the loss of an exit between the two.
    """
    span = record_function(name)
    node = out.grad_fn
    assert node is not None, "the caller has looked"

    def begin(_: object) -> None:
        span.__enter__()  # type: ignore[no-untyped-call]

    def end(_: object) -> None:
        span.__exit__(None, None, None)

    node.register_prehook(begin)
    h.register_hook(end)  # type: ignore[no-untyped-call]
