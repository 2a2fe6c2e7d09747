import math

import torch

from models.config import RopeScaling
from models.rope import inverse_frequencies, rotary_angles, rotate
from tests.tiny import tiny_config


def test_scores_depend_on_distances_only():
    config = tiny_config()
    q, k = torch.randn(2, 1, 1, 1, config.head_width, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        at = [rotary_angles(torch.tensor([[p]]), config) for p in (query_at, key_at)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    assert torch.isclose(score(5, 3), score(105, 103), atol=1e-5)
    assert not torch.isclose(score(5, 3), score(5, 4), atol=1e-3)


def test_llama_3_scaling_stretches_long_wavelengths_and_keeps_short_ones():
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    plain = inverse_frequencies(tiny_config(head_dim=64))
    scaled = inverse_frequencies(tiny_config(head_dim=64, rope_scaling=scaling))
    wavelength = 2 * math.pi / plain
    assert torch.equal(scaled[wavelength < 8], plain[wavelength < 8])
    assert torch.equal(scaled[wavelength > 32], plain[wavelength > 32] / 8)
    between = (wavelength > 8) & (wavelength < 32)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()
