"""`python -m benchmarks.scale`: what published Llamas would need on 8 to 1,024 accelerators.

For each cluster, model, number of accelerators and way of sharding: memory of a rank, bytes a rank
moves, step time, and the time that layer dropout saves, once with the collectives of dropped layers
skipped, as here, and once as where only the computing is. Nothing is measured: docs/scale.md says
what the model is and `python -m benchmarks.scale_check` holds it against this machine.

`python -m benchmarks.scale H100 rows=1` prints the clusters only whose name holds the word, and
gives each rank that many rows.
"""

import sys
from collections.abc import Sequence
from functools import cache, partial
from statistics import mean
from typing import Any

from benchmarks.accelerators import CLUSTERS, Cluster, network_bytes, ring_seconds
from benchmarks.lines import json_line, text_table
from benchmarks.scale_setups import ROWS, SEQ_LEN, Setup, setups
from benchmarks.step_time import BYTES_OF_UPDATE, Job, Rates, step_flops, step_seconds
from models.flops import layer_shapes, root_shapes
from parallel.cost import Sharding, UnitCollectives, unit_collectives
from trainer.layer_dropout import survivor_counts
from trainer.recipe_config import LayerDropoutConfig

COMPUTE_EFFICIENCY = 0.5
"""Assumed share of the peak FLOP/s that a rank reaches while it computes."""
BANDWIDTH_EFFICIENCY = 0.8
"""Assumed share of the bandwidth of links and memory that rings, copies and AdamW reach."""
OVERLAP = 1.0
"""Assumed share of communication that can hide behind computing, and the other way round."""
DRAWS = 32
"""Plans that a mean is taken over."""
RECIPES = {
    "paper": LayerDropoutConfig(max_prob=0.2),
    "half": LayerDropoutConfig(max_prob=0.5, curve="uniform", granularity="batch"),
}
"""Layer dropout of the paper's runs from scratch, and half of all layers dropped whole."""


def rates_of(cluster: Cluster, sharding: Sharding) -> Rates:
    """Return what a rank of a cluster is assumed to reach."""
    flops = cluster.peak * COMPUTE_EFFICIENCY
    return Rates(
        flops=flops,
        head_flops=flops,
        update=cluster.memory_bandwidth * BANDWIDTH_EFFICIENCY / BYTES_OF_UPDATE,
        collective=partial(
            ring_seconds, cluster=cluster, sharding=sharding, efficiency=BANDWIDTH_EFFICIENCY
        ),
        overlap=OVERLAP,
    )


@cache
def draws(recipe: str, num_layers: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Return how many rows run each layer, for some steps as the trainer would draw them."""
    return tuple(
        tuple(
            survivor_counts(
                RECIPES[recipe],
                num_layers=num_layers,
                step=step,
                total_steps=DRAWS,
                seed=0,
                rows=rows,
            )
        )
        for step in range(DRAWS)
    )


def row(setup: Setup) -> dict[str, Any]:
    """Return the figures of one setup; times in seconds, sizes in bytes."""
    job = Job(
        config=setup.config,
        sharding=setup.sharding,
        rows=setup.rows,
        seq_len=SEQ_LEN,
        recompute=setup.recompute,
    )
    rates = rates_of(setup.cluster, setup.sharding)
    everything = [setup.rows] * setup.config.num_hidden_layers
    seconds, flops = step_seconds(job, rates, everything), step_flops(job, everything)
    sent, outside = _volumes(setup)
    figures: dict[str, Any] = {
        "cluster": setup.cluster.name,
        "model": setup.model,
        "accelerators": setup.sharding.ranks,
        "sharding": setup.name,
        "shard_ranks": setup.sharding.shards,
        "rows": setup.rows,
        "recompute": setup.recompute,
        "memory_bytes": setup.memory,
        "fits": setup.fits,
        "sent_bytes": sent,
        "network_bytes": outside,
        "step_seconds": seconds,
        "mfu": flops / seconds / setup.cluster.peak,
    }
    for name in RECIPES:
        plans = draws(name, setup.config.num_hidden_layers, setup.rows)
        figures[f"{name}_flops_skipped"] = 1 - mean(step_flops(job, p) for p in plans) / flops
        for skip in (True, False):
            some = mean(step_seconds(job, rates, p, skip_collectives=skip) for p in plans)
            key = f"{name}_time_saved" if skip else f"{name}_time_saved_without_skipping"
            figures[key] = 1 - some / seconds
    return figures


def _volumes(setup: Setup) -> tuple[float, float]:
    """Return what each rank sends in a full step, and how much of it leaves the node."""
    units: list[tuple[UnitCollectives, int]] = [
        (unit_collectives(root_shapes(setup.config), setup.sharding, is_root=True), 1),
        (
            unit_collectives(layer_shapes(setup.config), setup.sharding, is_root=False),
            setup.config.num_hidden_layers,
        ),
    ]
    sent = outside = 0.0
    for unit, times in units:
        for one in (*unit.forward, *unit.backward, *unit.reduction, *unit.update):
            sent += times * one.sent
            outside += times * network_bytes(one, setup.cluster, setup.sharding)
    return sent, outside


COLUMNS = (
    "model",
    "accelerators",
    "sharding",
    "GB a rank",
    "GB sent",
    "of it out of the node",
    "step s",
    "MFU",
    "paper: FLOPs, time, time*",
    "half: FLOPs, time, time*",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text; sizes in GB of 10^9 bytes."""
    return text_table(COLUMNS, [_cells(figures) for figures in rows])


def _cells(figures: dict[str, Any]) -> tuple[object, ...]:
    name = figures["sharding"]
    if name == "hybrid":
        name += f" of {figures['shard_ranks']}"
    start = (figures["model"], figures["accelerators"], name)
    memory = f"{figures['memory_bytes'] / 1e9:.0f}" + (" r" if figures["recompute"] else "")
    if not figures["fits"]:
        return (*start, f"{memory}: too much", *["-"] * 6)
    saved = (
        " ".join(
            f"{figures[f'{recipe}_{key}']:.1%}"
            for key in ("flops_skipped", "time_saved", "time_saved_without_skipping")
        )
        for recipe in RECIPES
    )
    return (
        *start,
        memory,
        figures["sent_bytes"] / 1e9,
        figures["network_bytes"] / 1e9,
        figures["step_seconds"],
        f"{figures['mfu']:.2f}",
        *saved,
    )


def main(arguments: Sequence[str]) -> None:
    """Print a table for each cluster and a JSON line a row.

    Raises:
        ValueError: if no cluster has such a name, or there are not so many rows.
    """
    words = [word for word in arguments if not word.startswith("rows=")]
    rows = [int(word.removeprefix("rows=")) for word in arguments if word not in words] or [ROWS]
    wanted = [c for c in CLUSTERS if all(word in c.name for word in words)]
    if not wanted or rows[-1] < 1:
        names = "; ".join(c.name for c in CLUSTERS)
        raise ValueError(
            f"{' '.join(arguments)!r} names no cluster or no rows: rows=N is at least 1, and the "
            f"clusters are {names}"
        )
    found = []
    for cluster in wanted:
        figures = [row(setup) for setup in setups(cluster, rows=rows[-1])]
        sys.stdout.write(f"{cluster.name}\n\n{table(figures)}\n\n")
        found += figures
    sys.stdout.write(
        f"{rows[-1]} rows of {SEQ_LEN} tokens a rank; r: activations are recomputed; time*: "
        "collectives of dropped layers not skipped\n"
    )
    sys.stdout.writelines(json_line("scale", **figures) + "\n" for figures in found)


if __name__ == "__main__":
    main(sys.argv[1:])
