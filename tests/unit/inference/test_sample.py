import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from inference.sample import SamplingConfig, accept, choose, distribution, draw, likeliest

GREEDY = SamplingConfig()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _upstream(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    ids = torch.zeros(logits.shape[0], 1, dtype=torch.long)
    logits = TemperatureLogitsWarper(temperature)(ids, logits)
    logits = TopKLogitsWarper(top_k)(ids, logits) if top_k else logits
    logits = TopPLogitsWarper(top_p)(ids, logits) if top_p < 1 else logits
    return logits.softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.9), (0, 0.01), (7, 0.6)]
)
def test_the_distribution_is_that_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(50, 40, dtype=torch.float64) * 3
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = _upstream(logits, temperature, top_k, top_p)
    torch.testing.assert_close(distribution(logits, sampling), expected)


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.randn(3, 1000, dtype=torch.bfloat16)
    p = distribution(logits, SamplingConfig(temperature=1.0))
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(-1), torch.ones(3))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    p = distribution(torch.tensor([[3e4, 2e4, -3e4]]), SamplingConfig(temperature=temperature))
    assert p.tolist() == [[1.0, 0.0, 0.0]]


def test_more_than_the_vocabulary_keeps_all_of_it() -> None:
    logits = torch.randn(2, 5)
    some = SamplingConfig(temperature=1.0, top_k=9)
    assert torch.equal(distribution(logits, some), logits.softmax(-1))


def test_draws_have_the_frequencies_of_their_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 4.0, 0.0])
    drawn = draw(weights.expand(80_000, -1), _generator())
    frequencies = torch.bincount(drawn, minlength=6) / 80_000
    assert frequencies[[0, 2, 5]].sum() == 0
    torch.testing.assert_close(frequencies, weights / 8, atol=0.005, rtol=0)


def test_the_seed_decides_the_draws() -> None:
    logits, sampling = torch.randn(64, 96), SamplingConfig(temperature=1.0)
    first, again, other = (choose(logits, sampling, _generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_greedy_takes_the_likeliest_and_draws_nothing() -> None:
    generator = _generator()
    state = generator.get_state()
    tokens, p = choose(torch.tensor([[0.0, 5.0, 1.0]]), GREEDY, generator)
    assert (tokens.tolist(), p) == ([1], None)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("drafts", "tokens"),
    [([2, 0, 1], [2, 0, 1, 3]), ([2, 0, 9], [2, 0, 1]), ([9, 0, 1], [2]), ([], [2])],
)
def test_greedy_acceptance_keeps_the_matching_prefix_and_adds_one(
    drafts: list[int], tokens: list[int]
) -> None:
    logits = torch.eye(10)[[2, 0, 1, 3][: len(drafts) + 1]]  # (d + 1, V), argmax 2, 0, 1, 3
    given = [torch.tensor([token]) for token in drafts]
    kept, drafted, last = accept(logits, given, [], GREEDY, _generator())
    assert (kept, drafted, last.tolist()) == (tokens, drafts, tokens[-1:])


def test_drafts_from_the_verifiers_own_distribution_are_all_kept() -> None:
    logits, sampling = torch.randn(5, 12), SamplingConfig(temperature=0.8)
    p = distribution(logits, sampling)
    for seed in range(50):
        generator = _generator(seed)
        drafts = [draw(row[None], generator) for row in p[:-1]]
        kept, drafted, _ = accept(logits, drafts, list(p[:-1].split(1)), sampling, generator)
        assert kept[:-1] == drafted


def test_drafts_that_the_verifier_excludes_are_never_kept() -> None:
    logits, sampling = torch.randn(2, 12), SamplingConfig(temperature=1.0, top_k=1)
    likeliest = int(logits[0].argmax())
    q = torch.full((1, 12), 1 / 12)
    for token in set(range(12)) - {likeliest}:
        kept, _, _ = accept(logits, [torch.tensor([token])], [q], sampling, _generator(token))
        assert kept == [likeliest]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .* got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 .* got nan"),
        ({"temperature": 1.0, "top_k": -1}, "top_k must be 0 .* got -1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_k": 5}, "would be ignored at temperature=0"),
        ({"top_p": 0.9}, "would be ignored at temperature=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(512,), (1, 1024), (3, 2, 768), (4, 300), (0, 512)])
def test_the_likeliest_is_the_first_maximum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = likeliest(logits)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1) if logits.numel() else found
    assert found.shape == logits.shape[:-1]
    assert torch.equal(found, first)
