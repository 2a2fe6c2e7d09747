import random

import pytest

from data_pipelines.mix import Mix


@pytest.mark.parametrize("seed", range(5))
def test_after_any_number_of_samples_every_source_has_had_its_share_to_within_a_few(
    seed: int,
) -> None:
    shares = (0.5, 0.3, 0.15, 0.05)
    mix = Mix.of(shares, seed)
    for samples in (10, 100, 1000, 10**4, 10**6, 10**9):
        counts = [mix.count_before(samples, source) for source in range(4)]
        assert sum(counts) == samples
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - share * samples) < 8  # draws would be off by sqrt(samples) / 2


def test_any_part_of_a_run_is_mixed_as_the_whole_is() -> None:
    mix = Mix.of((0.7, 0.3), seed=1)
    draw = random.Random(0)
    for _ in range(200):
        first = draw.randrange(10**8)
        window = [mix.source(sample) for sample in range(first, first + 100)]
        assert abs(window.count(1) - 30) <= 3


def test_the_count_is_what_counting_gives() -> None:
    mix = Mix.of((0.01, 0.42, 0.57), seed=7)
    counts = [0, 0, 0]
    for sample in range(3000):
        if sample % 53 == 0:
            assert [mix.count_before(sample, source) for source in range(3)] == counts
        counts[mix.source(sample)] += 1


def test_the_seed_decides_where_the_mixture_begins() -> None:
    first, again, other = (
        [Mix.of((0.5, 0.5), seed).source(sample) for sample in range(64)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_share_that_would_never_be_seen_is_refused() -> None:
    with pytest.raises(ValueError, match="too small: raise its weight"):
        Mix.of((1 - 1e-12, 1e-12), seed=0)
