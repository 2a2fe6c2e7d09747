import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.loader import Batch, Loader, Split, open_split, prefetch
from data_pipelines.pack import write_split

SEQ_LEN = 8
LENGTHS = [5, 20, 1, 1, 9, 30, 8, 8, 16, 40, 3, 4]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """18 sequences in pieces of unequal size; the ids count up from 0."""
    ids = np.arange(sum(LENGTHS), dtype=np.int32)
    ends = np.cumsum(LENGTHS)
    batches = [
        (ids[a:b], np.asarray(LENGTHS[k : k + 4], np.int32))
        for k, (a, b) in zip(
            (0, 4, 8), itertools.pairwise([0, *ends[[3, 7, 11]].tolist()]), strict=True
        )
    ]
    write_split(tmp_path / "train.arrow", batches, SEQ_LEN)
    return open_split(tmp_path, "train")


def loader(split: Split, **changes: Any) -> Loader:
    settings = {"seed": 3, "micro_batch_size": 2, "num_microbatches": 4, "documents": False}
    return Loader(split, **(settings | changes))


def samples(batch: Batch) -> list[int]:
    """Which sequences a batch holds: their first ids count up in steps of the length."""
    return [int(first) // SEQ_LEN for first in batch.ids[:, 0]]


def step_samples(loader: Loader, step: int) -> list[int]:
    batches = [loader.microbatch(step, index) for index in range(loader.num_microbatches)]
    return [sample for batch in batches for sample in samples(batch)]


def as_lists(batch: Batch) -> list[Any]:
    tensors = (batch.ids, batch.labels, batch.positions, batch.documents)
    return [None if t is None else t.tolist() for t in tensors]


def test_a_sequence_holds_consecutive_tokens_and_its_labels_are_the_next_ones(
    split: Split,
) -> None:
    batch = loader(split).microbatch(0, 0)
    assert batch.ids.shape == batch.labels.shape == (2, SEQ_LEN)
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels, batch.ids + 1)
    assert torch.equal(batch.ids, batch.ids[:, :1] + torch.arange(SEQ_LEN))


def test_positions_are_shared_and_nothing_is_left_out_when_attention_crosses_documents(
    split: Split,
) -> None:
    batch = loader(split).sequential(0)
    assert torch.equal(batch.positions, torch.arange(SEQ_LEN)[None])
    assert batch.documents is None
    assert int((batch.labels == -100).sum()) == 0


def test_positions_labels_and_documents_end_at_borders_when_attention_does_not_cross_them(
    split: Split,
) -> None:
    batch = loader(split, documents=True, micro_batch_size=4).sequential(0)
    assert batch.documents is not None
    # lengths 5, 20, 1, 1, 9: document 0 ends at token 4, 1 at 24, 2 at 25, 3 at 26
    assert batch.documents[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.labels[0].tolist() == [1, 2, 3, 4, -100, 6, 7, 8]
    assert batch.documents[3].tolist() == [1, 2, 3, 4, 4, 4, 4, 4]
    assert batch.positions[3].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert batch.labels[3].tolist() == [-100, -100, -100, 28, 29, 30, 31, 32]


def test_a_border_at_the_end_of_a_sequence_is_not_predicted(tmp_path: Path) -> None:
    write_split(
        tmp_path / "train.arrow",
        [(np.arange(9, dtype=np.int32), np.asarray([8, 1], np.int32))],
        SEQ_LEN,
    )
    opened = open_split(tmp_path, "train")
    batch = loader(opened, documents=True, micro_batch_size=1).sequential(0)
    assert batch.labels.tolist() == [[1, 2, 3, 4, 5, 6, 7, -100]]


def test_only_the_borders_are_left_out_of_the_labels(split: Split) -> None:
    inside, across = loader(split, documents=True), loader(split)
    for index in range(inside.num_sequential):
        one, other = inside.sequential(index), across.sequential(index)
        kept = one.labels != -100
        assert torch.equal(one.labels[kept], other.labels[kept])
        next_ids = torch.isin(other.labels, torch.as_tensor(np.cumsum(LENGTHS)))
        assert torch.equal(~kept, next_ids)


def test_a_microbatch_is_a_pure_function_of_step_and_index(split: Split) -> None:
    first, second = loader(split, documents=True), loader(split, documents=True)
    wanted = [(7, 3), (0, 0), (7, 3), (100, 1)]
    forward = [as_lists(first.microbatch(*which)) for which in wanted]
    backward = [as_lists(second.microbatch(*which)) for which in reversed(wanted)]
    assert forward == backward[::-1]
    assert forward[0] == forward[2] != forward[1]


@pytest.mark.parametrize(("rows", "microbatches"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_how_a_global_batch_is_cut_does_not_change_its_sequences(
    split: Split, rows: int, microbatches: int
) -> None:
    cut = loader(split, micro_batch_size=rows, num_microbatches=microbatches)
    whole = loader(split, micro_batch_size=8, num_microbatches=1)
    for step in range(5):
        assert step_samples(cut, step) == step_samples(whole, step)


def test_every_epoch_has_every_sequence_once_in_another_order(split: Split) -> None:
    one_at_a_time = loader(split, micro_batch_size=1, num_microbatches=1)
    size = len(split)
    order = [samples(one_at_a_time.microbatch(step, 0))[0] for step in range(3 * size)]
    epochs = [order[k * size : (k + 1) * size] for k in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_seed_decides_the_order(split: Split) -> None:
    orders = [step_samples(loader(split, seed=seed), 0) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_step_larger_than_the_split_takes_its_sequences_again(split: Split) -> None:
    big = loader(split, micro_batch_size=8, num_microbatches=5)
    counts = np.bincount(step_samples(big, 0), minlength=len(split))
    assert set(counts.tolist()) == {2, 3}
    assert counts.sum() == 40


def test_validation_has_every_sequence_once_in_order_and_a_short_last_batch(
    split: Split,
) -> None:
    inorder = loader(split, micro_batch_size=4)
    batches = [inorder.sequential(index) for index in range(inorder.num_sequential)]
    assert [sample for batch in batches for sample in samples(batch)] == list(range(len(split)))
    assert [len(batch.ids) for batch in batches] == [4, 4, 4, 4, 2]


def test_a_split_without_sequences_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "valid.arrow", [], SEQ_LEN)
    with pytest.raises(ValueError, match="the split has no sequence"):
        loader(open_split(tmp_path, "valid"))


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no test.arrow"):
        open_split(tmp_path, "test")


def test_prefetching_yields_the_same_items_in_the_same_order() -> None:
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([], depth=1)) == []


def test_prefetching_works_ahead_but_not_without_bound() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    items = prefetch(numbers(), depth=2)
    assert next(items) == 0
    wait_until(lambda: len(made) >= 3)
    time.sleep(0.05)
    assert len(made) <= 4
    items.close()


def test_what_the_source_raises_is_raised_at_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("disk on fire")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk on fire"):
        next(items)


@pytest.mark.parametrize("depth", [1, 2])
def test_closing_early_ends_the_thread(depth: int) -> None:
    items = prefetch(itertools.count(), depth=depth)
    assert next(items) == 0
    assert any(thread.name == "prefetch" for thread in threading.enumerate())
    items.close()
    wait_until(lambda: not any(t.name == "prefetch" for t in threading.enumerate()))


def test_closing_waits_for_an_item_that_is_being_made() -> None:
    def slow() -> Iterator[int]:
        yield 0
        time.sleep(0.3)
        yield 1

    items = prefetch(slow())
    assert next(items) == 0
    items.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_closing_does_not_wait_for_an_item_that_takes_long() -> None:
    release = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        release.wait(30)
        yield 1

    items = prefetch(slow())
    assert next(items) == 0
    started = time.monotonic()
    items.close()
    assert time.monotonic() - started < 5
    release.set()


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
