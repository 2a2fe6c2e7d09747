"""Causal attention in bfloat16 on a CPU, whose kernel is fast forward and slow backward.

Letters: B rows, S positions, H query heads, G kv heads, E head width.
"""

from typing import Any, cast

import torch
from torch import Tensor

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
"""The kernel and its gradient. They do not check that the last dimension is dense, and read wrong
numbers if not."""


def attend_in_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal softmax(q k') v (B, H, S, E) for q (B, H, S, E) and k, v (B, G, S, E).

    The backward pass runs in float32: its bfloat16 kernel takes 2 to 3 times as long. What is kept
    for it stays bfloat16.
    """
    return cast(Tensor, _Attention.apply(q, k, v))  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = flash(q, k, v, is_causal=True)  # (B, H, S, E), (B, H, S) float32
        ctx.save_for_backward(q, k, v, out, sums)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *kept, sums = ctx.saved_tensors
        wide = [tensor.float() for tensor in (grad.contiguous(), *kept)]
        gradients = flash_backward(*wide, sums, 0.0, True)
        return tuple(gradient.to(grad.dtype) for gradient in gradients)
