"""What accelerators and their links can do, as data, and how long a ring takes on them.

Memory, its bandwidth and links are from the makers' data sheets; a link is counted in one
direction, half of what is advertised. FLOP/s are those of `trainer.device_peaks`.
"""

from dataclasses import dataclass

import torch

from parallel.cost import Collective, Sharding
from trainer.device_peaks import peak_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal nodes of equal accelerators."""

    name: str
    device: str
    """As the driver says it."""
    memory: float
    """Bytes of one accelerator."""
    memory_bandwidth: float
    """Bytes a second."""
    per_node: int
    """Accelerators of a node."""
    node_bandwidth: float
    """Bytes a second of one accelerator within its node, one direction."""
    network_bandwidth: float
    """Bytes a second out of a node for each of its accelerators, one direction."""
    start_latency: float = 8.4e-6
    """Seconds until a collective moves. This one and the next two are the constants of NCCL's own
    cost model for rings, protocol Simple (`src/graph/tuning.cc`, version 2.8)."""
    node_latency: float = 3.4e-6
    """Seconds of a hop within a node."""
    network_latency: float = 9.6e-6
    """Seconds of a hop between nodes."""

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s of one accelerator, from the maker's data sheet."""
        peak = peak_flops(self.device, torch.bfloat16)
        assert peak is not None, f"no peak FLOP/s of {self.device} in trainer.device_peaks"
        return peak


CLUSTERS = (
    Cluster(  # DGX A100 80 GB: NVLink 600 GB/s both ways, 8 x HDR InfiniBand of 200 Gb/s
        name="A100, InfiniBand 200 Gb/s each",
        device="NVIDIA A100-SXM4-80GB",
        memory=80e9,
        memory_bandwidth=2039e9,
        per_node=8,
        node_bandwidth=300e9,
        network_bandwidth=25e9,
    ),
    Cluster(  # as the 8 x A100 80 GB of clouds: 400 Gb/s for a whole node
        name="A100, Ethernet 50 Gb/s each",
        device="NVIDIA A100-SXM4-80GB",
        memory=80e9,
        memory_bandwidth=2039e9,
        per_node=8,
        node_bandwidth=300e9,
        network_bandwidth=6.25e9,
    ),
    Cluster(  # DGX H100: NVLink 900 GB/s both ways, 8 x NDR InfiniBand of 400 Gb/s
        name="H100, InfiniBand 400 Gb/s each",
        device="NVIDIA H100 80GB HBM3",
        memory=80e9,
        memory_bandwidth=3350e9,
        per_node=8,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
    ),
    Cluster(  # DGX B200: 1,440 GB and 64 TB/s for 8, NVLink 1.8 TB/s both ways, 400 Gb/s each
        name="B200, InfiniBand 400 Gb/s each",
        device="NVIDIA B200",
        memory=180e9,
        memory_bandwidth=8000e9,
        per_node=8,
        node_bandwidth=900e9,
        network_bandwidth=50e9,
    ),
)


def members_per_node(collective: Collective, cluster: Cluster, sharding: Sharding) -> int:
    """Return how many ranks of a collective's group share a node.

    Ranks of one copy are neighbours; the holders of the same shard are a copy apart.
    """
    if collective.group == "shard":
        return min(cluster.per_node, collective.ranks)
    return min(max(cluster.per_node // sharding.shards, 1), collective.ranks)


def ring_seconds(
    collective: Collective, cluster: Cluster, sharding: Sharding, efficiency: float
) -> float:
    """Return how long a ring takes: hops one after the other, then bytes over the narrowest link.

    A ring crosses from node to node once a node, through the network cards of all members there.
    Weights are copied out of the flat buffer that was gathered, gradients into that which is
    reduced: in memory, read and write.

    Args:
        collective: what is moved.
        cluster: where.
        sharding: places the groups on the nodes.
        efficiency: share of the links' and the memory's bandwidth that is reached.
    """
    if collective.ranks == 1:
        return 0.0
    members = members_per_node(collective, cluster, sharding)
    nodes = -(-collective.ranks // members)
    rounds = 2 if collective.operation == "all_reduce" else 1
    inside, between = rounds * (collective.ranks - nodes), rounds * (nodes - 1)
    bandwidth = cluster.node_bandwidth
    if nodes > 1:
        bandwidth = min(bandwidth, members * cluster.network_bandwidth)
    latency = inside * cluster.node_latency + between * cluster.network_latency
    copying = 2 * collective.size / (cluster.memory_bandwidth * efficiency)
    return cluster.start_latency + latency + collective.sent / (bandwidth * efficiency) + copying


def network_bytes(collective: Collective, cluster: Cluster, sharding: Sharding) -> float:
    """Return what of a collective each accelerator of a node sends out of the node."""
    members = members_per_node(collective, cluster, sharding)
    return collective.sent / members if collective.ranks > members else 0.0
