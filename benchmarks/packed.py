"""`python -m benchmarks.packed`: attention inside packed documents, against a mask.

The first table is one attention, forward and backward, over rows packed with documents of drawn
lengths: under a boolean mask, by PyTorch's attention in a loop over slices, by ours, and across
documents, which is not the same function and does the work that a mask would like to spare. Its
`pairs` are the causal pairs of positions inside documents over all causal pairs: what is left to do
of attention that crosses documents. The second table is a whole training step.

Lengths are log-normal, cut off at the end of the row. A median of 300 tokens and a sigma of 1 make
a mean of 495 tokens, about that of the web pages in C4 (2.3 kB each).
"""

import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, text_table
from benchmarks.steps import make_engine, random_batch, run_step
from benchmarks.timing import Timings, interleave, ratio
from data_pipelines.loader import IGNORED, Batch
from models.config import LlamaConfig
from models.documents import document_mask, make_documents
from models.packed_attention import attend_inside
from models.plan import full
from parallel.config import ParallelConfig
from parallel.world import start, stop

MODEL = LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
)
PARALLEL = ParallelConfig(precision="bfloat16")
SHAPES = ((2, 2048, 300), (2, 2048, 30), (2, 2048, 100_000), (8, 256, 300))
"""Rows, positions, and the median length of documents: pages, messages, books, short rows."""
STEP_SHAPE = SHAPES[0]
ROUNDS = 5
COLUMNS = ("rows x positions", "median", "documents", "pairs", "ours, s")
RATIOS = ("mask / ours", "slices / ours", "crossing / ours")

Jobs = dict[str, Callable[[], object]]


def draw_lengths(seq_len: int, median: float, seed: int) -> list[int]:
    """Return log-normal lengths of documents that fill a row; the last one is cut off."""
    source = random.Random(seed)
    lengths: list[int] = []
    while (left := seq_len - sum(lengths)) > 0:
        length = round(source.lognormvariate(math.log(median), 1.0))
        lengths.append(min(max(length, 1), left))
    return lengths


def draw_ids(rows: int, seq_len: int, median: float) -> Tensor:
    """Return document ids (B, S)."""
    drawn = [torch.tensor(draw_lengths(seq_len, median, seed)) for seed in range(rows)]
    return torch.stack([torch.repeat_interleave(lengths) for lengths in drawn])


def lengths_of(row: Tensor) -> list[int]:
    """Return how long each document of a row of ids (S,) is."""
    lengths: list[int] = torch.unique_consecutive(row, return_counts=True)[1].tolist()
    return lengths


def share_of_pairs(ids: Tensor) -> float:
    """Return the pairs of positions inside documents over all causal pairs of ids (B, S)."""
    inside = sum(n * (n + 1) for row in ids for n in lengths_of(row))
    return inside / (ids.shape[0] * ids.shape[1] * (ids.shape[1] + 1))


def by_slices(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    """Return the attention (B, H, S, E) of each document by a call that autograd sees."""
    rows = []
    for row, lengths in enumerate(map(lengths_of, ids)):
        parts = zip(*(torch.split(x[row, None], lengths, dim=2) for x in (q, k, v)), strict=True)
        called = [
            scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True, enable_gqa=True)
            for one_q, one_k, one_v in parts
        ]
        rows.append(torch.cat(called, dim=2))
    return torch.cat(rows)


def attention_jobs(ids: Tensor) -> Jobs:
    """Return forward and backward passes of attention over rows of documents (B, S), by name."""
    documents, mask = make_documents(ids), document_mask(ids)
    heads = (MODEL.num_attention_heads, MODEL.kv_heads, MODEL.kv_heads)
    shapes = [(*ids.shape, n, MODEL.head_width) for n in heads]
    given = [torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes]
    gradient = torch.randn(shapes[0]).transpose(1, 2)

    def job(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*given), given, gradient)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)

    def crossing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return {
        "mask": job(masked),
        "slices": job(partial(by_slices, ids=ids)),
        "ours": job(partial(attend_inside, documents=documents)),
        "crossing": job(crossing),
    }


def figures(kind: str, ids: Tensor, median: float, times: dict[str, Timings]) -> dict[str, Any]:
    """Return a row: what was attended to (ids (B, S)), and the time of each job over ours."""
    row: dict[str, Any] = {
        "kind": kind,
        "rows": ids.shape[0],
        "seq_len": ids.shape[1],
        "median_length": median,
        "documents": sum(len(lengths_of(row)) for row in ids),
        "pairs": share_of_pairs(ids),
        "seconds": {name: t.median() for name, t in times.items()},
        "cpu_seconds": {name: t.median("cpu") for name, t in times.items()},
    }
    for name in times.keys() - {"ours"}:
        row[f"{name}_over_ours"] = asdict(ratio(times[name], times["ours"]))
        row[f"{name}_over_ours_cpu"] = asdict(ratio(times[name], times["ours"], "cpu"))
    return row


def under_a_mask(model: nn.Module, run: Callable[[], object]) -> None:
    """Run with the slow twin: every layer of the model looks at all pairs of positions."""

    def swap(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, tokens, *others = arguments
        slow = replace(tokens, mask=document_mask(tokens.documents.ids), documents=None)
        return ids, slow, *others

    with model.register_forward_pre_hook(swap):
        run()


def packed_batch(ids: Tensor) -> Batch:
    """Return random tokens in documents (B, S), as the loader gives them."""
    batch = random_batch(MODEL, *ids.shape)
    positions = [torch.cat([torch.arange(n) for n in lengths_of(row)]) for row in ids]
    ends = pad(ids[:, 1:] != ids[:, :-1], (0, 1))
    labels = batch.labels.masked_fill(ends, IGNORED)
    return replace(batch, labels=labels, positions=torch.stack(positions), documents=ids)


def measure_step() -> dict[str, Any]:
    """On a rank: time whole training steps."""
    world = start(device="cpu")
    ids = draw_ids(*STEP_SHAPE)
    inside = packed_batch(ids)
    crossing = random_batch(MODEL, *ids.shape)
    plan, weights = full(MODEL.num_hidden_layers), {MODEL.num_hidden_layers: 1.0}
    engine = make_engine(MODEL, PARALLEL, world)

    def step(batch: Batch) -> None:
        run_step(engine, [batch], [plan], weights, world=world)

    times = interleave(
        {
            "mask": lambda: under_a_mask(engine.model, partial(step, inside)),
            "ours": partial(step, inside),
            "crossing": partial(step, crossing),
        },
        rounds=ROUNDS,
    )
    stop()
    return figures("step", ids, STEP_SHAPE[2], times)


def measure_attention(rows: int, seq_len: int, median: float) -> dict[str, Any]:
    """Time attention alone; Args: as in `SHAPES`."""
    ids = draw_ids(rows, seq_len, median)
    return figures("attention", ids, median, interleave(attention_jobs(ids), rounds=ROUNDS))


def cells(row: dict[str, Any]) -> list[object]:
    """Return a row of the table; a ratio is by wall time, then by processor time."""
    shape = f"{row['rows']} x {row['seq_len']}"
    found: list[object] = [shape, row["median_length"], row["documents"], row["pairs"]]
    found.append(row["seconds"]["ours"])
    for name in ("mask", "slices", "crossing"):
        both = [row.get(f"{name}_over_ours{clock}") for clock in ("", "_cpu")]
        found.append(" / ".join(f"{x['value']:.2f}" for x in both if x) or "-")
    return found


def main() -> None:
    """Print the tables and a JSON line for each row."""
    rows = [measure_attention(*shape) for shape in SHAPES]
    step = on_ranks(1, measure_step)[0]
    for title, of_table in (("Attention", rows), ("Training step", [step])):
        print(f"{title}; ratios by wall time / by processor time\n")
        print(text_table([*COLUMNS, *RATIOS], [cells(row) for row in of_table]), "\n")
    for row in (*rows, step):
        print(json_line("packed", **row))


if __name__ == "__main__":
    main()
