import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from inference.fast import pack as packing
from inference.fast.choose import Chooser, Multiply, one_dnn, one_row, transposed
from inference.fast.compiler import library
from inference.fast.linear import FastLinear
from inference.fast.pack import pack, quantised
from inference.fast.structs import Kind

SHAPES = [(16, 32), (64, 64), (1, 1), (5, 33), (33, 5), (100, 70), (200, 96)]
ROWS = [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 300]
KINDS = {
    Kind.ROWS_FLOAT: (torch.float32, 1e-5),
    Kind.ROWS_BF16: (torch.bfloat16, 1e-2),
    Kind.TILES: (torch.bfloat16, 1e-2),
    Kind.ROWS_INT8: (torch.float32, 1e-5),
    Kind.TILES_INT8: (torch.bfloat16, 1e-2),
}
INT8 = (Kind.ROWS_INT8, Kind.TILES_INT8)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _made(kind: Kind, features: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> FastLinear:
    kernels = library()
    if kernels is None or (kind.is_tiles and not kernels.skip_has_tiles()):
        pytest.skip("needs a compiler, or a matrix unit")
    monkeypatch.setattr(packing, "kind_of", lambda *_a, **_k: kind)
    weight, bias = (x.to(KINDS[kind][0]) for x in (_draw(features, inputs), _draw(features)))
    return FastLinear(pack([weight], [bias], is_int8=kind in INT8), Chooser())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("features", "inputs"), SHAPES)
def test_our_kernels_are_linear_for_any_shape_and_number_of_rows(
    kind: Kind, features: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, (dtype, tolerance) = _made(kind, features, inputs, monkeypatch), KINDS[kind]
    weight = _draw(features, inputs).to(dtype)
    if kind in INT8:
        values, scale = quantised(weight)
        weight = values.float() * scale[:, None]
    for rows in ROWS:
        x = _draw(rows, inputs, seed=1).to(dtype)
        expected = linear(x.double(), weight.double(), _draw(features).to(dtype).double())
        error = (fast.ours(x).double() - expected).abs().max()
        assert error <= tolerance * expected.abs().max()


class OursIsFastest(Chooser):
    """What a clock may say on any machine, at any time."""

    def fastest(self, x: Tensor, weight: Tensor, *, ours: Multiply | None = None) -> None:
        assert ours is not None


@pytest.mark.parametrize("kind", [each for each in KINDS if not each.is_tiles], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 14, 16])
def test_two_gated_matrices_are_multiplied_whatever_is_fastest(
    kind: Kind, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _made(kind, 1, 1, monkeypatch)  # skips where it has to
    weights = [_draw(64, 32, seed=seed).to(KINDS[kind][0]) for seed in (0, 1)]
    packed = pack(weights, [None, None], is_int8=kind in INT8, is_gated=True)
    x = _draw(rows, 32, seed=2).to(KINDS[kind][0])
    expected = linear(x.double(), torch.cat(weights).double())
    error = (FastLinear(packed, OursIsFastest())(x).double() - expected).abs().max()
    assert error <= (2e-2 if kind in INT8 else KINDS[kind][1]) * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_row_is_the_same_bits_alone_and_in_company(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = _made(kind, 100, 70, monkeypatch)
    x = _draw(40, 70, seed=1).to(KINDS[kind][0])
    alone = torch.cat([fast.ours(row[None]) for row in x])
    for rows in (2, 3, 7, 16, 17, 33, 40):
        assert torch.equal(fast.ours(x[:rows]), alone[:rows])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_leading_shape_goes_through(dtype: torch.dtype) -> None:
    layers = [nn.Linear(24, n, dtype=dtype) for n in (8, 40)]
    fast = FastLinear(pack([m.weight for m in layers], [m.bias for m in layers]), Chooser())
    with torch.inference_mode():
        for shape in ((24,), (3, 24), (2, 5, 24), (0, 24), (1, 0, 24)):
            x = _draw(*shape).to(dtype)
            expected = torch.cat([m(x) for m in layers], dim=-1)
            torch.testing.assert_close(fast(x), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_torch_has_ways_that_agree(dtype: torch.dtype) -> None:
    x, weight = _draw(1, 48).to(dtype), _draw(80, 48, seed=1).to(dtype)
    ways = [transposed, one_row] + ([one_dnn] if dtype != torch.float64 else [])
    for way in ways:
        torch.testing.assert_close(way(x, weight), linear(x, weight), atol=0.1, rtol=2e-2)


def test_the_fastest_way_is_timed_once_for_a_shape() -> None:
    calls: list[int] = []

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(x.shape[0])
        return linear(x, weight)

    chooser, weight = Chooser(), _draw(4096, 512)
    for rows in (3, 4, 3):
        chooser.fastest(_draw(rows, 512), weight, ours=ours)
    timed = len(calls)
    assert set(calls) == {3}
    chooser.fastest(_draw(5, 512), weight, ours=ours)
    assert len(calls) == 2 * timed


def test_nothing_that_takes_longer_is_chosen() -> None:
    def slow(x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(50):
            out = linear(x, weight)
        return out

    assert Chooser().fastest(_draw(2, 512), _draw(2048, 512), ours=slow) is not None


def test_int8_is_off_by_half_a_step_at_most() -> None:
    weight = _draw(50, 30) * _draw(50, 1, seed=1).exp()
    weight[7] = 0
    values, scale = quantised(weight)
    error = (values.float() * scale[:, None] - weight).abs()
    assert (error <= scale[:, None] * 0.501).all()
    assert values.abs().amax(dim=1)[torch.arange(50) != 7].eq(127).all()
    assert not values[7].any()


def test_without_our_kernels_everything_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "library", lambda: None)
    weight = _draw(60, 40).bfloat16()
    for is_int8 in (False, True):
        packed = pack([weight], [None], is_int8=is_int8)
        assert packed.kind is None
        x = _draw(3, 40, seed=1).bfloat16()
        expected = linear(x, weight)
        torch.testing.assert_close(FastLinear(packed, Chooser())(x), expected, atol=0.2, rtol=5e-2)


def test_a_gated_pair_in_tiles_takes_turns_block_by_block() -> None:
    gate, up = torch.arange(20.0)[:, None], 100 + torch.arange(20.0)[:, None]
    blocks = packing.in_blocks(torch.cat((gate, up))).flatten().view(4, 16)
    assert blocks[0].tolist() == list(range(16))
    assert blocks[1].tolist() == list(range(100, 116))
    assert blocks[2].tolist() == [16, 17, 18, 19, *[0] * 12]
    assert blocks[3].tolist() == [116, 117, 118, 119, *[0] * 12]
    assert float(silu(blocks).sum()) > 0
