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


def test_a_turn_is_a_complex_product():
    config = tiny_config()
    half = config.head_width // 2
    x = torch.randn(2, 4, 6, config.head_width, dtype=torch.float64)
    angles = torch.arange(6.0)[:, None] * inverse_frequencies(config)  # (S, E / 2)
    product = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angles)
    turned = rotate(x, *rotary_angles(torch.arange(6)[None], config))
    expected = torch.cat((product.real, product.imag), dim=-1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)  # angles are float32


def test_the_gradient_is_that_of_the_plain_formula():
    config = tiny_config()
    cos, sin = rotary_angles(torch.randint(0, 99, (2, 6)), config)
    x, grad = torch.randn(2, 2, 4, 6, config.head_width, dtype=torch.float64)
    x.requires_grad_()
    half = config.head_width // 2
    plain = x * cos[:, None] + x.roll(half, dims=-1) * sin[:, None]
    fast = rotate(x, cos, sin)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(
        torch.autograd.grad(fast, x, grad)[0], torch.autograd.grad(plain, x, grad)[0]
    )
