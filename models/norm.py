"""RMSNorm (arXiv 1910.07467) with a gradient written out for the CPU.

torch has a kernel for it on accelerators. On the CPU it takes the norm apart into nine operations
that keep tensors of their own for the backward pass: more time than a matrix product, and memory.

Letters: B rows, S positions, D width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.RMSNorm):
    """The norm of torch; where a gradient is needed on the CPU, with one of our own."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) with a root mean square of 1 over D, times the weight (D,)."""
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _RmsNorm.apply(x, self.weight, self.epsilon))  # type: ignore[no-untyped-call]
        return rms_norm(x, self.normalized_shape, self.weight, self.epsilon)


class _RmsNorm(torch.autograd.Function):
    """Computes in float32 at least, as torch does; `torch.nn.functional.rms_norm` is its oracle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        out = (x.to(wide) * scale).mul_(weight.to(wide))
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        width, dtype, wide = x.shape[-1], x.dtype, scale.dtype
        x, grad, factor = x.to(wide), grad.to(wide), weight.to(wide)
        product = (grad * x).flatten(0, -2)  # (N, D)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.mv(product.t(), scale.flatten()).to(weight.dtype)  # (D,)
        pull = (product @ factor).view_as(scale) * scale.pow(3).div_(-width)  # (..., 1)
        of_x = (grad * factor).mul_(scale).addcmul_(x, pull)
        return of_x.to(dtype), of_weight, None
