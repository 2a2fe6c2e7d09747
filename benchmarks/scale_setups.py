"""The rows of `benchmarks.scale`: which model on how many accelerators, how sharded, what fits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.accelerators import Cluster
from benchmarks.llamas import LLAMAS
from models.config import LlamaConfig
from parallel.cost import Method, Sharding
from parallel.memory import Workload, rank_memory
from trainer.head_loss import chunk_size

RANKS = (8, 64, 256, 1024)
ROWS, SEQ_LEN = 4, 4096
"""Of each rank in each step, one microbatch, unless asked for others: the paper's batch on its 64
accelerators."""
SHARDINGS: tuple[tuple[str, Method], ...] = (
    ("FSDP", "fsdp"),
    ("hybrid", "fsdp"),
    ("ZeRO-1", "zero-1"),
    ("ZeRO-2", "zero-2"),
    ("ZeRO-3", "zero-3"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One row of the table: who trains what where and how."""

    cluster: Cluster
    model: str
    name: str
    """Of the sharding."""
    sharding: Sharding
    rows: int
    """Of each rank."""
    recompute: bool
    memory: int
    """Bytes of one rank."""

    @property
    def config(self) -> LlamaConfig:
        """The model's shape."""
        return LLAMAS[self.model]

    @property
    def fits(self) -> bool:
        """Whether a rank's memory holds it."""
        return self.memory <= self.cluster.memory


def setups(
    cluster: Cluster, models: Sequence[str] = tuple(LLAMAS), *, rows: int = ROWS
) -> Iterator[Setup]:
    """Yield every row of a cluster's table."""
    for model in models:
        for ranks in RANKS:
            for name, method in SHARDINGS:
                if name == "hybrid" and ranks == cluster.per_node:
                    continue  # one node: the same as FSDP
                yield _setup(cluster, model, rows, name, _sizes(cluster, ranks, name, method))


def _sizes(cluster: Cluster, ranks: int, name: str, method: Method) -> list[Sharding]:
    """Return the ways to form groups: all ranks, or (hybrid) so many nodes that they are fewer."""
    sizes = [ranks]
    if name == "hybrid":
        powers = [cluster.per_node * 2**n for n in range(8)]
        sizes = [size for size in powers if size < ranks]
    return [_sharding(ranks, size, method) for size in sizes]


def _setup(
    cluster: Cluster, model: str, rows: int, name: str, candidates: Sequence[Sharding]
) -> Setup:
    """Take the smallest group of nodes that holds a copy (hybrid), and recompute if it has to."""
    found = [
        Setup(
            cluster=cluster,
            model=model,
            name=name,
            sharding=sharding,
            rows=rows,
            recompute=recompute,
            memory=_memory(LLAMAS[model], sharding, rows, recompute),
        )
        for sharding in candidates
        for recompute in (False, True)
    ]
    return next((setup for setup in found if setup.fits), found[-1])


def _sharding(ranks: int, size: int, method: Method) -> Sharding:
    """Gathers are in bfloat16, reductions in float32, as the engines here do them."""
    return Sharding(ranks=ranks, shard_ranks=size, method=method, gather_width=2, reduce_width=4)


def _memory(config: LlamaConfig, sharding: Sharding, rows: int, recompute: bool) -> int:
    work = Workload(
        rows=rows,
        seq_len=SEQ_LEN,
        chunk_tokens=chunk_size(config.vocab_size),
        recompute=recompute,
    )
    return rank_memory(config, sharding, work).total
