import pytest
import torch
from torch import Tensor

from parallel.flat_shard import FlatShard, boxes


def rebuilt(shape: tuple[int, ...], cuts: list[int]) -> Tensor:
    """Cut a counted tensor at these elements into boxes, and put it together again."""
    count = int(torch.tensor(shape).prod())
    flat, whole = torch.arange(count), torch.full(shape, -1)
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        for box in boxes(flat[start:end], shape, start):
            sides = zip(box.offset, box.part.shape, strict=True)
            place = tuple(slice(at, at + length) for at, length in sides)
            assert (whole[place] == -1).all(), "two boxes overlap"
            whole[place] = box.part
    return whole


@pytest.mark.parametrize("shape", [(12,), (3, 4), (4, 3), (1, 12), (12, 1), (2, 3, 2)])
@pytest.mark.parametrize("cuts", [[], [1], [5], [4, 8], [1, 2, 3], [5, 5, 11], [0, 12]])
def test_ranges_cut_anywhere_make_up_the_whole(shape: tuple[int, ...], cuts: list[int]) -> None:
    assert torch.equal(rebuilt(shape, cuts), torch.arange(12).view(shape))


def test_a_range_of_a_matrix_is_three_boxes_at_most() -> None:
    for start in range(40):
        for end in range(start, 40):
            assert len(list(boxes(torch.arange(end - start), (8, 5), start))) <= 3


def test_writing_to_a_box_writes_to_the_shard() -> None:
    local = torch.zeros(7)
    shard = FlatShard(local, (3, 4), 3)
    for number, box in enumerate(shard.boxes(), start=1):
        box.part.fill_(number)
    assert local.tolist() == [1, 2, 2, 2, 2, 3, 3]


def test_a_shard_shows_the_whole_shape_and_refuses_arithmetic() -> None:
    shard = FlatShard(torch.zeros(7), (3, 4), 3)
    assert tuple(shard.shape) == (3, 4)
    assert len(shard.to_local()) == 7
    assert shard.detach() is shard
    with pytest.raises(NotImplementedError, match="use its boxes"):
        shard + 1
