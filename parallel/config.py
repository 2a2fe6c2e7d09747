"""How a model is spread over processes."""

from dataclasses import dataclass
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


Stage = Literal[1, 2, 3]


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroConfig:
    """DeepSpeed ZeRO (arXiv 1910.02054) instead of FSDP2."""

    stage: Stage
    """What is sharded: moments and master weights (1), gradients too (2), weights too (3)."""
    offload_optimizer: bool = False
    """Keep moments and master weights in host memory and update them there."""
    deepspeed_config: str | None = None
    """A DeepSpeed JSON of yours: settings of speed and memory are passed on, what contradicts this
    config is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Device, precision and sharding."""

    fsdp: FsdpConfig | None = None
    """How FSDP2 shards; it does so by default."""
    zero: ZeroConfig | None = None
    """How DeepSpeed shards; naming this section chooses it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, one per local rank, and the CPU without one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Master weights, moments and gradient reduction are float32 in both."""
    recompute: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the layer with torch.compile; one graph serves all layers and plans."""
    timeout_seconds: float = 600.0
    """How long a step may take, from the second on, and a collective in it may wait for a missing
    rank, before every rank writes down where it stands and stops."""
    long_timeout_seconds: float = 1800.0
    """The same for what takes longer: the start, the first step (which compiles), validation,
    writing a checkpoint."""

    def __post_init__(self) -> None:
        if self.fsdp is not None and self.zero is not None:
            raise ValueError(
                "parallel.fsdp and parallel.zero are both given: leave out one of them"
            )
        if self.zero is not None and self.zero.stage == 3 and self.compile:
            raise ValueError(
                "parallel.compile does not work with parallel.zero.stage 3, whose hooks gather "
                "weights within the layer: set compile to false, or stage to 1 or 2, or take fsdp"
            )
        if self.timeout_seconds <= 0:
            raise ValueError(
                f"parallel.timeout_seconds must be positive, got {self.timeout_seconds}"
            )
        if self.long_timeout_seconds < self.timeout_seconds:
            raise ValueError(
                f"parallel.long_timeout_seconds {self.long_timeout_seconds} is less than "
                f"parallel.timeout_seconds {self.timeout_seconds}: raise it, or lower the other"
            )

    @property
    def sharding(self) -> FsdpConfig:
        """How FSDP2 shards, the default resolved."""
        return self.fsdp or FsdpConfig()
