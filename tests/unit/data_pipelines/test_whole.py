import numpy as np
import pytest

from data_pipelines.whole import pack_samples, pack_whole

PADDING = 9999


def samples(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Samples whose tokens say whose they are, and where in it."""
    ids = [100 * sample + at for sample, length in enumerate(lengths) for at in range(length)]
    return np.asarray(ids, np.int32), np.asarray(lengths, np.int32)


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_whole_in_one_sequence(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 18, 50).tolist()
    packed = pack_whole(*samples(lengths), 16, PADDING)
    found = []
    for ids, documents in zip(packed.ids, packed.documents, strict=True):
        assert len(ids) == 17
        assert (np.diff(documents) >= 0).all()
        for number in np.unique(documents):
            tokens = ids[documents == number].tolist()
            if tokens[0] == ~PADDING:
                assert set(tokens) == {~PADDING}
                assert number == documents[-1]
            else:
                sample = tokens[0] // 100
                assert tokens == list(range(100 * sample, 100 * sample + lengths[sample]))
                found.append(sample)
    assert sorted(found) == list(range(50))


def test_little_is_wasted() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 1000).tolist()
    packed = pack_whole(*samples(lengths), 1024, PADDING)
    assert len(packed.ids) <= sum(lengths) / 1025 * 1.01 + 1


def test_samples_of_many_batches_are_packed_together() -> None:
    batches = [samples([3, 4])] * 5
    (packed,) = pack_samples(batches, 13, PADDING)
    assert packed.ids.shape == (3, 14)


def test_no_sample_gives_no_sequence() -> None:
    assert list(pack_samples([], 8, PADDING)) == []
    assert pack_whole(*samples([]), 8, PADDING).ids.shape == (0, 9)
