import pytest
import torch
from torch import Tensor

from inference.cache import KVCache
from tests.tiny import tiny_config

CONFIG = tiny_config(num_key_value_heads=2, head_dim=8)


def _cache(max_length: int = 10, rows: int = 1) -> KVCache:
    return KVCache(
        CONFIG,
        layers=range(3),
        max_length=max_length,
        rows=rows,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def _new(positions: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 2, positions, 8, dtype=torch.float64)


def test_appending_returns_everything_so_far() -> None:
    cache, first, second = _cache(rows=2), _new(3, rows=2), _new(2, rows=2)
    cache.append(1, first, -first)
    keys, values = cache.append(1, second, -second)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, -keys)


def test_every_layer_has_a_length_of_its_own() -> None:
    cache = _cache()
    cache.append(0, _new(3), _new(3))
    cache.append(2, _new(1), _new(1))
    assert cache.lengths == {0: 3, 1: 0, 2: 1}


def test_cropping_lowers_lengths_and_moves_nothing() -> None:
    cache, kept = _cache(), _new(4)
    before, _ = cache.append(0, kept, kept)
    cache.append(1, _new(2), _new(2))
    cache.crop(3)
    assert cache.lengths == {0: 3, 1: 2, 2: 0}
    after, _ = cache.append(0, kept[:, :, :1], kept[:, :, :1])
    assert after.data_ptr() == before.data_ptr()
    assert torch.equal(after, torch.cat((kept[:, :, :3], kept[:, :, :1]), dim=2))


def test_cropping_may_leave_the_first_layers_alone() -> None:
    cache = _cache()
    for layer in range(3):
        cache.append(layer, _new(4), _new(4))
    cache.crop(1, first_layer=2)
    assert cache.lengths == {0: 4, 1: 4, 2: 1}


def test_a_full_buffer_refuses_and_keeps_what_it_has() -> None:
    cache, held = _cache(max_length=4), _new(3)
    keys, _ = cache.append(0, held, held)
    with pytest.raises(RuntimeError, match="layer 0: 5 positions, cache holds 4"):
        cache.append(0, _new(2), _new(2))
    assert cache.lengths[0] == 3
    assert torch.equal(keys, held)
