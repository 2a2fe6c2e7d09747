"""A shard that is a range of a parameter's elements, as DeepSpeed cuts parameters.

FSDP2 cuts between rows, and a DTensor says where. DeepSpeed lines elements up in row-major order
and cuts anywhere. Such a range is a few boxes: a piece of a row, whole rows, a piece of a row.
Checkpoints are written and read box by box, so both kinds of shard share one format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor."""

    offset: tuple[int, ...]
    """Where it begins in the whole, an index for each dimension."""
    part: Tensor
    """Its values (any shape), a view."""


def boxes(local: Tensor, shape: tuple[int, ...], start: int) -> Iterator[Box]:
    """Cut a range of a tensor's elements into boxes.

    Args:
        local: the elements (N,) in row-major order.
        shape: of the whole tensor, at least one dimension.
        start: index of the first element among all of the whole.
    """
    if len(local) == 0:
        return
    if len(shape) == 1:
        yield Box((start,), local)
        return
    row, end = prod(shape[1:]), start + len(local)
    first = min(end, -(-start // row) * row)  # where the first whole row begins
    last = max(first, end // row * row)  # where the last whole row ends
    if start < first:
        yield from _in_row(start // row, local[: first - start], shape, start % row)
    if first < last:
        whole = local[first - start : last - start].view(-1, *shape[1:])
        yield Box((first // row, *(0 for _ in shape[1:])), whole)
    if last < end:
        yield from _in_row(last // row, local[last - start :], shape, 0)


def _in_row(index: int, local: Tensor, shape: tuple[int, ...], start: int) -> Iterator[Box]:
    """Cut a range (N,) that lies within one row."""
    for box in boxes(local, shape[1:], start):
        yield Box((index, *box.offset), box.part[None])


class FlatShard(Tensor):
    """What one rank holds of a tensor of any shape; nothing but its size can be computed with.

    torch's distributed checkpoint reads into it by the two methods with underscores.
    """

    _local: Tensor
    _boxes: list[Box]
    start: int
    """Index of the first element."""

    @staticmethod
    def __new__(cls, local: Tensor, shape: tuple[int, ...], start: int) -> "FlatShard":
        """Wrap elements.

        Args:
            local: the rank's elements (N,), of which writing changes the state; may be none.
            shape: of the whole tensor.
            start: index of the first of them.
        """
        shard: FlatShard = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=local.dtype, device=local.device
        )
        shard._local = local
        shard._boxes = list(boxes(local, shape, start))
        shard.start = start
        return shard

    def to_local(self) -> Tensor:
        """Return the elements of this rank (N,)."""
        return self._local

    def boxes(self) -> list[Box]:
        """Return the elements of this rank as parts of the whole."""
        return self._boxes

    def like(self, local: Tensor) -> "FlatShard":
        """Return the same part of the whole, with other elements (N,)."""
        return FlatShard(local, tuple(self.shape), self.start)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Tell the loading planner which boxes this rank wants."""
        return [ChunkStorageMetadata(torch.Size(box.offset), box.part.shape) for box in self._boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """Return the memory (any shape) of a box that the planner asks for."""
        return next(box.part for box in self._boxes if torch.Size(box.offset) == index.offset)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse: a shard's elements are reached by `to_local`.

        Raises:
            NotImplementedError: always, but for detaching, which every checkpoint does.
        """
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of a shard; use to_local()")
