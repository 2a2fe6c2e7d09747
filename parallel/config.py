"""How a model is spread over processes."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class FsdpConfig:
    """PyTorch FSDP2: every parameter, gradient and moment is sharded over ranks; one rank alone has
    nothing to shard."""

    shard_size: int | None = None
    """Ranks that share one copy of the weights; absent: all of them. A smaller number is hybrid
    sharding: copies of the weights, each sharded over this many ranks (one node, as a rule)."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights between its forward and its backward (less memory, one more
    gather a layer)."""

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"parallel.fsdp.shard_size must be at least 1, got {self.shard_size}")

    def ranks_of_a_copy(self, size: int) -> int:
        """Return how many of `size` ranks share one copy of the weights.

        Raises:
            ValueError: if copies do not fill the world.
        """
        shard_size = self.shard_size or size
        if size % shard_size:
            raise ValueError(
                f"parallel.fsdp.shard_size {shard_size} must divide the number of ranks {size}"
            )
        return shard_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Device, precision and sharding."""

    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    """How FSDP2 shards."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, one per local rank, and the CPU without one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Master weights, moments and gradient reduction are float32 in both."""
    recompute: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the layer with torch.compile; one graph serves all layers and plans."""
    timeout_seconds: float = 600.0
    """How long a collective may wait for a missing rank before every rank is stopped."""

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0:
            raise ValueError(
                f"parallel.timeout_seconds must be positive, got {self.timeout_seconds}"
            )
