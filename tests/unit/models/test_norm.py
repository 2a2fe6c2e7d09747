import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from models.norm import RMSNorm

WIDTH = 48


def results(fast: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
    """Output and gradients of ours or of torch's own norm, from the same numbers."""
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(*shape, WIDTH, generator=generator).to(dtype) for _ in range(2))
    norm = RMSNorm(WIDTH, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(WIDTH, generator=generator) + 0.5)
    x.requires_grad_()
    out = norm(x) if fast else rms_norm(x, (WIDTH,), norm.weight, 1e-3)
    return [out.detach(), *torch.autograd.grad(out, [x, norm.weight], grad)]


@pytest.mark.parametrize("shape", [(3, 7), (5,), (0, 7), (2, 1, 4)])
def test_output_and_gradients_are_those_of_torch(shape: tuple[int, ...]) -> None:
    for ours, theirs in zip(
        results(True, torch.float64, shape), results(False, torch.float64, shape), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_torch_makes_it(dtype: torch.dtype) -> None:
    exact = results(False, torch.float64, (64, 32))
    for ours, theirs, truth in zip(
        results(True, dtype, (64, 32)), results(False, dtype, (64, 32)), exact, strict=True
    ):
        assert ours.dtype == theirs.dtype
        error, allowed = ((found.double() - truth).norm() for found in (ours, theirs))
        # In bfloat16 rounding the results dominates; in float32 the order of 2,048 summands does.
        assert error <= allowed * (8.0 if dtype == torch.float32 else 1.05)


def test_without_gradients_it_is_torchs_norm() -> None:
    norm, x = RMSNorm(WIDTH, eps=1e-5), torch.randn(2, WIDTH)
    with torch.no_grad():
        assert torch.equal(norm(x), rms_norm(x, (WIDTH,), norm.weight, 1e-5))


def test_fewer_tensors_are_kept_for_the_backward_pass() -> None:
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    norm, x = RMSNorm(WIDTH, eps=1e-5), torch.randn(100, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    assert kept == x.numel() + 100 + WIDTH
