from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.documents import Documents, document_blocks, document_mask
from models.packed_attention import attend_inside

B, H, G, S, E = 3, 4, 2, 40, 8

LENGTHS = {
    "different documents": [[7, 33], [20, 1, 1, 18], [39, 1]],
    "a document a row": [[S]] * B,
    "equal documents": [[10] * 4, [S], [20, 20]],
    "a token each": [[1] * S, [S], [1, S - 2, 1]],
}
every_packing = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def ids_of(lengths: list[list[int]]) -> Tensor:
    rows = [torch.repeat_interleave(torch.arange(len(r)), torch.tensor(r)) for r in lengths]
    return torch.stack(rows)


def inputs(rows: int = B, dtype: torch.dtype = torch.float64, kv_heads: int = G) -> list[Tensor]:
    """Return q, k, v as projections leave them: (B, S, heads, E), transposed."""
    shapes = [(rows, S, heads, E) for heads in (H, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def each_alone(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return attend_inside(q, k, v, Documents(ids, None))


def masked(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    """The slow twin: all pairs of positions, of which most are thrown away."""
    return scaled_dot_product_attention(q, k, v, document_mask(ids), enable_gqa=True)


def with_gradients(
    attend: Callable[..., Tensor], given: list[Tensor], ids: Tensor, gradient: Tensor
) -> list[Tensor]:
    out = attend(*given, ids)
    return [out.detach(), *torch.autograd.grad(out, given, gradient)]


@every_packing
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_output_and_gradients_are_those_of_a_mask(lengths: list[list[int]], kv_heads: int) -> None:
    given, ids = inputs(kv_heads=kv_heads), ids_of(lengths)
    gradient = torch.randn(B, H, S, E, dtype=torch.float64)
    found = with_gradients(each_alone, given, ids, gradient)
    expected = with_gradients(masked, given, ids, gradient)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["rows first", "heads first", "width not dense"])
def test_any_memory_layout_will_do(layout: str) -> None:
    """The kernel would read wrong numbers where the last dimension is not dense."""
    given, ids = inputs(), ids_of(LENGTHS["different documents"])
    if layout == "heads first":
        given = [x.detach().contiguous().requires_grad_() for x in given]
    if layout == "width not dense":
        given = [x.detach().mT.contiguous().mT.requires_grad_() for x in given]
    for gradient in (torch.ones(()).double().expand(B, H, S, E), torch.randn(B, H, E, S).double()):
        gradient = gradient if gradient.shape[-1] == E else gradient.mT
        found = with_gradients(each_alone, given, ids, gradient)
        expected = with_gradients(masked, given, ids, gradient)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_no_rows_have_no_attention() -> None:
    given = inputs(rows=0)
    out = each_alone(*given, torch.zeros(0, S, dtype=torch.long))
    assert out.shape == (0, H, S, E)
    assert [g.shape for g in torch.autograd.grad(out.sum(), given)] == [x.shape for x in given]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_come_as_near_as_a_mask_does(dtype: torch.dtype) -> None:
    given, ids = inputs(dtype=dtype), ids_of(LENGTHS["different documents"])
    gradient = torch.randn(B, H, S, E, dtype=dtype)
    found = with_gradients(each_alone, given, ids, gradient)
    wide = [x.detach().double().requires_grad_() for x in given]
    expected = with_gradients(masked, wide, ids, gradient.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


def test_the_operator_keeps_what_pytorch_asks_of_operators() -> None:
    given = [x.transpose(1, 2).flatten(0, 1) for x in inputs()]
    arguments = (*given, ids_of(LENGTHS["different documents"]))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    operator = torch.ops.skipstone.each_document.default
    torch.library.opcheck(operator, arguments, test_utils=checks)


@every_packing
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
@torch.no_grad()
def test_flex_attention_attends_alike(lengths: list[list[int]]) -> None:
    """Its kernels are for accelerators; here it runs uncompiled, and forward only."""
    given, ids = [x.detach() for x in inputs(dtype=torch.float32)], ids_of(lengths)
    with torch.compiler.set_stance("force_eager"):
        found = attend_inside(*given, Documents(ids, document_blocks(ids)))
    torch.testing.assert_close(found, masked(*given, ids), rtol=0, atol=1e-5)
