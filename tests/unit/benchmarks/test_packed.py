import pytest
import torch

from benchmarks.packed import (
    MODEL,
    attention_jobs,
    draw_ids,
    draw_lengths,
    lengths_of,
    packed_batch,
    share_of_pairs,
)


@pytest.mark.parametrize("median", [3, 300, 100_000])
def test_drawn_documents_fill_the_row(median: float) -> None:
    lengths = draw_lengths(512, median, seed=1)
    assert sum(lengths) == 512
    assert min(lengths) >= 1


def test_the_median_is_the_one_asked_for() -> None:
    lengths = sorted(draw_lengths(100_000, 50, seed=0))
    assert 45 < lengths[len(lengths) // 2] < 55


def test_a_document_a_row_leaves_no_pair_out() -> None:
    ids = draw_ids(2, 16, 100_000)
    assert [lengths_of(row) for row in ids] == [[16], [16]]
    assert share_of_pairs(ids) == 1


def test_pairs_are_counted_inside_documents() -> None:
    assert share_of_pairs(torch.tensor([[0, 0, 1, 1]])) == (3 + 3) / 10


def test_a_batch_predicts_nothing_across_a_border() -> None:
    batch = packed_batch(torch.tensor([[0, 0, 1, 1, 1]]))
    assert (batch.labels[0] == -100).tolist() == [False, True, False, False, False]
    assert batch.positions[0].tolist() == [0, 1, 0, 1, 2]


def test_what_is_compared_is_the_same_function_but_for_crossing() -> None:
    jobs = attention_jobs(draw_ids(2, 64, 10))
    gradients = {name: job() for name, job in jobs.items()}
    torch.testing.assert_close(gradients["ours"], gradients["mask"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["ours"], gradients["slices"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradients["ours"][0], gradients["crossing"][0])
    assert gradients["ours"][0].shape == (2, MODEL.num_attention_heads, 64, MODEL.head_width)
