"""`python -m benchmarks.scale_check`: the step-time model of `benchmarks.scale`, here.

On one and two FSDP2 ranks the parts are timed one by one: layers, the head with its loss, AdamW
with clipping, gathers, reductions and copies of two sizes. From these rates the model predicts
whole steps under layer dropout, for several p, and the steps are timed. Ranks that share cores with
gloo cannot overlap computing and communicating, so the overlap is 0 here.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, text_table
from benchmarks.step_time import Job, Rates, step_seconds
from benchmarks.steps import OPTIM, make_engine, random_batch, run_step
from benchmarks.timing import Clock, Timings, interleave
from models.config import LlamaConfig
from models.flops import head_flops, layer_flops, num_parameters
from models.gradient import add_gradient
from models.init import init_weights
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from parallel.config import ParallelConfig
from parallel.cost import Collective, Sharding
from parallel.memory import SINGLE
from parallel.world import World, start, stop
from trainer.head_loss import HeadGradient, chunk_size, exit_loss
from trainer.layer_dropout import plan_step, survivor_counts
from trainer.optim import build_adamw
from trainer.recipe_config import LayerDropoutConfig
from trainer.step import StepResult

MODEL = LlamaConfig(
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=512,
)
ROWS, SEQ_LEN = 4, 128
PROBABILITIES = (0.0, 0.3, 0.5, 0.7)
ROUNDS = 5
SIZES = (2**16, 2**21)
"""Numbers of a small and a large collective."""
LAYERS = (1, 5)
"""A layer is timed as the difference of two stacks, over their difference in height."""
CLOCKS: tuple[Clock, ...] = ("wall", "cpu")
COLUMNS = (
    "ranks",
    "p",
    "layers skipped",
    "measured s",
    "predicted s",
    "predicted / measured",
    "by CPU time",
    "saved: measured, predicted",
    "by CPU time",
)


def dropout(p: float) -> LayerDropoutConfig:
    """Return layer dropout with the same p for every layer, whole layers at a time."""
    return LayerDropoutConfig(max_prob=p, curve="uniform", granularity="batch")


def measure() -> list[dict[str, Any]]:
    """On a rank: time the parts and the steps in turns; return a row for each p."""
    world = start(device="cpu")
    sharding = Sharding(ranks=world.size)
    steps = {f"p={p}": partial(next, _steps(p, world)) for p in PROBABILITIES}
    times = interleave({**_parts(world.size), **steps}, rounds=ROUNDS, wait=dist.barrier)
    job = Job(config=MODEL, sharding=sharding, rows=ROWS, seq_len=SEQ_LEN)
    stop()
    return [_compare(p, job, times) for p in PROBABILITIES]


def _compare(p: float, job: Job, times: Mapping[str, Timings]) -> dict[str, Any]:
    """Return what was measured and what the rates of the parts predict, by both clocks."""
    counts = [_counts(p, step) for step in range(ROUNDS)]
    figures: dict[str, Any] = {
        "ranks": job.sharding.ranks,
        "p": p,
        "skipped_layers": 1 - mean(map(sum, counts)) / ROWS / MODEL.num_hidden_layers,
    }
    for clock in CLOCKS:
        rates = rates_from({name: of.median(clock) for name, of in times.items()}, job.sharding)
        predicted = [step_seconds(job, rates, run) for run in counts]
        ratios = [
            ours / real for ours, real in zip(predicted, times[f"p={p}"].of(clock), strict=True)
        ]
        figures |= {
            f"measured_{clock}_seconds": mean(times[f"p={p}"].of(clock)),
            f"predicted_{clock}_seconds": mean(predicted),
            f"predicted_over_measured_{clock}": median(ratios),
        }
    return figures


def _steps(p: float, world: World) -> Iterator[StepResult]:
    """Run whole steps with plans of this p; the first, a warm-up, has the plan of the second."""
    engine = make_engine(MODEL, ParallelConfig(), world)
    batch = random_batch(MODEL, ROWS, SEQ_LEN, seed=world.rank)
    for index in count(-1):
        plan = plan_step(
            dropout(p),
            num_layers=MODEL.num_hidden_layers,
            step=max(index, 0),
            total_steps=ROUNDS,
            seed=0,
            microbatch=world.rank,
            rows=ROWS,
        )
        yield run_step(engine, [batch], [plan], {MODEL.num_hidden_layers: 1.0}, world=world)


def _counts(p: float, step: int) -> list[int]:
    return survivor_counts(
        dropout(p),
        num_layers=MODEL.num_hidden_layers,
        step=step,
        total_steps=ROUNDS,
        seed=0,
        rows=ROWS,
    )


def _parts(ranks: int) -> dict[str, Callable[[], object]]:
    """Return the parts of a step as jobs by name."""
    model = Llama(MODEL)
    init_weights(model, MODEL, seed=0)
    jobs: dict[str, Callable[[], object]] = {
        **{f"{n} layers": partial(_run_layers, model, n) for n in LAYERS},
        "head": partial(_run_head, model),
        "update": _update_job(),
    }
    for numbers in SIZES:
        whole, part = torch.zeros(numbers), torch.zeros(numbers // ranks)
        jobs[f"all_gather {numbers}"] = partial(dist.all_gather_single, whole, part)
        jobs[f"reduce_scatter {numbers}"] = partial(dist.reduce_scatter_single, part, whole)
        jobs[f"copy {numbers}"] = whole.clone
    return jobs


def _run_layers(model: Llama, number: int) -> None:
    h = torch.ones(ROWS, SEQ_LEN, MODEL.hidden_size, requires_grad=True)
    tokens = make_tokens(MODEL, torch.arange(SEQ_LEN)[None])
    out = model(h, tokens, full(number))[number]
    out.backward(torch.ones_like(out))


def _run_head(model: Llama) -> None:
    hidden = torch.ones(ROWS * SEQ_LEN, MODEL.hidden_size)
    labels = torch.zeros(len(hidden), dtype=torch.long)
    head = HeadGradient(model, add_gradient)
    chunk = chunk_size(MODEL.vocab_size)
    exit_loss(model, hidden, labels, chunk_tokens=chunk, guess=False, scale=1e-4, head=head)
    head.deliver()


def _update_job() -> Callable[[], object]:
    """Return clipping and AdamW of a whole model."""
    model = Llama(MODEL)
    optimizer = build_adamw(model, OPTIM)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def work() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return work


def rates_from(seconds: Mapping[str, float], sharding: Sharding) -> Rates:
    """Return the rates of a rank from the seconds of its parts.

    Args:
        seconds: by the names of the parts.
        sharding: with one rank, collectives take no time.
    """
    few, many = LAYERS
    layer = (seconds[f"{many} layers"] - seconds[f"{few} layers"]) / (many - few)
    return Rates(
        flops=3 * layer_flops(MODEL, ROWS, SEQ_LEN) / layer,
        head_flops=3 * head_flops(MODEL, ROWS, SEQ_LEN) / seconds["head"],
        update=num_parameters(MODEL) / seconds["update"],
        collective=partial(_collective, seconds) if sharding.ranks > 1 else lambda _: 0.0,
        overlap=0.0,
    )


def _collective(seconds: Mapping[str, float], collective: Collective) -> float:
    """Return the seconds of a collective and of the copy from or to its buffer.

    They are on the line through the two sizes that were timed.
    """
    small, large = (SINGLE * numbers for numbers in SIZES)
    quick, slow = (
        seconds[f"{collective.operation} {numbers}"] + seconds[f"copy {numbers}"]
        for numbers in SIZES
    )
    return quick + (slow - quick) * (collective.size - small) / (large - small)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text."""
    return text_table(
        COLUMNS,
        [
            (
                r["ranks"],
                r["p"],
                r["skipped_layers"],
                r["measured_wall_seconds"],
                r["predicted_wall_seconds"],
                r["predicted_over_measured_wall"],
                r["predicted_over_measured_cpu"],
                *(_saved(r, full_step(rows, r), clock) for clock in CLOCKS),
            )
            for r in rows
        ],
    )


def full_step(rows: Sequence[dict[str, Any]], of: dict[str, Any]) -> dict[str, Any]:
    """Return the row with nothing dropped and as many ranks."""
    return next(r for r in rows if r["ranks"] == of["ranks"] and r["p"] == 0)


def _saved(some: dict[str, Any], full: dict[str, Any], clock: Clock) -> str:
    shares = (
        1 - some[f"{kind}_{clock}_seconds"] / full[f"{kind}_{clock}_seconds"]
        for kind in ("measured", "predicted")
    )
    return " ".join(f"{share:.1%}" for share in shares)


def main() -> None:
    """Compare on one and two ranks, print the table and a JSON line a row."""
    rows = [row for ranks in (1, 2) for row in on_ranks(ranks, measure)[0]]
    sys.stdout.write(table(rows) + "\n")
    sys.stdout.writelines(json_line("scale_check", **row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
