import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.cpu_attention import attend_in_bfloat16


def results(dtype: torch.dtype, heads: int, kv_heads: int, length: int) -> list[Tensor]:
    """Output and gradients, in bfloat16 by ours and else by torch."""
    generator = torch.Generator().manual_seed(2)
    q, k, v, grad = (
        torch.randn(2, length, n, 16, generator=generator).bfloat16().to(dtype).transpose(1, 2)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    if dtype == torch.bfloat16:
        out = attend_in_bfloat16(*inputs)
    else:
        out = scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("length", [1, 7, 200])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_causal_attention_to_the_precision_of_bfloat16(kv_heads: int, length: int) -> None:
    exact = results(torch.float64, 4, kv_heads, length)
    for found, truth in zip(results(torch.bfloat16, 4, kv_heads, length), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - truth).norm() <= 5e-3 * max(truth.norm(), torch.ones(()))


def test_no_rows_are_no_error() -> None:
    x = torch.randn(0, 2, 5, 16, dtype=torch.bfloat16, requires_grad=True)
    out = attend_in_bfloat16(x, x, x)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    assert out.shape == x.grad.shape == (0, 2, 5, 16)
