import torch

from benchmarks.memory import peak_bytes

MIB = 2**20


def floats(mib: int) -> torch.Tensor:
    return torch.zeros(mib * MIB // 4)


def test_the_peak_is_what_was_alive_at_once_and_not_all_that_was_made() -> None:
    def job() -> None:
        first = floats(4)
        del first
        kept = [floats(1), floats(2)]
        assert kept

    assert 4 * MIB <= peak_bytes(job) < 4.1 * MIB


def test_memory_inside_an_operator_counts() -> None:
    x = floats(1)
    assert peak_bytes(lambda: torch.logsumexp(x, 0)) >= MIB  # its copy of x, never seen outside


def test_what_was_there_before_does_not_count() -> None:
    before = floats(64)
    assert peak_bytes(lambda: before.add_(1)) < MIB
