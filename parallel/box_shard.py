"""What one rank holds of a tensor, as rectangular parts of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

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


class BoxShard(Tensor):
    """Some boxes of a tensor of any shape; nothing but its size can be computed with.

    torch's distributed checkpoint reads into it by the two methods with underscores.
    """

    _boxes: list[Box]

    @classmethod
    def wrap(cls, boxes: Sequence[Box], shape: tuple[int, ...], *, like: Tensor) -> Self:
        """Return the shard of these boxes, of which writing changes the state.

        Args:
            boxes: parts of the whole; may be none.
            shape: of the whole.
            like: gives dtype and device (any shape).
        """
        shard: Self = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=like.dtype, device=like.device
        )
        shard._boxes = list(boxes)
        return shard

    def boxes(self) -> list[Box]:
        """Return what this rank holds as parts of the whole."""
        return self._boxes

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
        """Refuse: what a shard holds is reached by `boxes`.

        Raises:
            NotImplementedError: always, but for detaching, which every checkpoint does.
        """
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of a shard; use its boxes()")
