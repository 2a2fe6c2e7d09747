import pytest
import torch
from torch import Tensor

from inference.row_cache import RowCache, row_tokens
from tests.tiny import tiny_config

CONFIG = tiny_config(num_key_value_heads=2, head_dim=8)


def _cache(rows: int = 3, max_length: int = 10) -> RowCache:
    return RowCache(
        CONFIG,
        layers=range(2),
        rows=rows,
        max_length=max_length,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def _new(rows: int, positions: int) -> Tensor:
    return torch.randn(rows, 2, positions, 8, dtype=torch.float64)


def test_keys_lie_at_their_positions_whatever_other_rows_do() -> None:
    cache, new = _cache(), _new(2, 3)
    positions = torch.tensor([[0, 1, 2], [4, 5, 6]])
    keys, values = cache.writer(positions, first=1, width=7).append(0, new, -new)
    assert keys.shape == (2, 2, 7, 8)
    for row in range(2):
        assert torch.equal(keys[row][:, positions[row]], new[row])
    assert torch.equal(values, -keys)
    assert cache.layer(0)[0][0].count_nonzero() == cache.layer(1)[0].count_nonzero() == 0


def test_writing_again_replaces_what_a_rejected_draft_left() -> None:
    cache, rejected, new = _cache(rows=1), _new(1, 4), _new(1, 2)
    cache.writer(torch.tensor([[2, 3, 4, 5]]), first=0, width=6).append(1, rejected, rejected)
    keys, _ = cache.writer(torch.tensor([[3, 4]]), first=0, width=5).append(1, new, new)
    assert torch.equal(keys[:, :, 2:3], rejected[:, :, :1])
    assert torch.equal(keys[:, :, 3:5], new)


def test_no_copy_is_made_of_what_is_held() -> None:
    cache = _cache()
    writer = cache.writer(torch.tensor([[0], [3], [1]]), first=0, width=4)
    keys, _ = writer.append(0, _new(3, 1), _new(3, 1))
    assert keys.data_ptr() == cache.layer(0)[0].data_ptr()


def test_a_moved_row_has_its_keys_in_the_other_place() -> None:
    cache, new = _cache(), _new(3, 4)
    positions = torch.arange(4).expand(3, -1)
    for layer in range(2):
        cache.writer(positions, first=0, width=4).append(layer, new, -new)
    cache.move(2, 0, 3)
    for layer in range(2):
        keys, values = cache.layer(layer)
        assert torch.equal(keys[0, :, :3], new[2][:, :3])
        assert torch.equal(keys[0, :, 3], new[0][:, 3])
        assert torch.equal(values, -keys)


def test_a_position_sees_itself_and_what_is_before_it() -> None:
    writer = _cache(rows=2).writer(torch.tensor([[1, 2], [3, 4]]), first=0, width=5)
    angles = torch.randn(1, 10, 8, dtype=torch.float64)
    tokens = row_tokens(angles, -angles, writer)
    assert tokens.mask is not None
    assert (tokens.mask == 0).sum(-1).tolist() == [[[2, 3]], [[4, 5]]]
    seen = (tokens.mask == 0).int()
    assert torch.equal(seen, seen.cummin(-1).values)  # the first so many
    assert torch.equal(tokens.cos[1, 0], angles[0, 3])


@pytest.mark.parametrize("length", [1, 6])
def test_reading_a_prompt_needs_no_mask(length: int) -> None:
    writer = _cache(rows=1).writer(torch.arange(length)[None], first=0, width=length)
    angles = torch.randn(1, 10, 8, dtype=torch.float64)
    assert row_tokens(angles, angles, writer).mask is None
