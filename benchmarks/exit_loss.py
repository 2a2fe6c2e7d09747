"""`python -m benchmarks.exit_loss`: what exits cost in memory and time.

The first table takes ready hidden states of 1, 4 and 16 exits through loss and backward pass, as
training does, with all logits by autograd, and with torch's `linear_cross_entropy`: peak memory
beside weights and hidden states, and processor time per exit over that of the three matrix products
which an unembedding with its gradient needs.

The second table is the training step of the paper's recipe (L = 32, rotation R = 8, e_scale 0.2)
over the plain step, averaged over a rotation, with a head that is the share of the FLOPs that it is
in Llama 7B.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear_cross_entropy

from benchmarks.launch import on_ranks
from benchmarks.lines import json_line, text_table
from benchmarks.memory import peak_bytes
from benchmarks.steps import make_engine, random_batch, run_step
from benchmarks.timing import Spread, interleave, ratio
from models.config import LlamaConfig
from models.flops import flops_of_plan
from models.init import init_weights
from models.llama import Llama
from models.plan import full
from parallel.config import ParallelConfig
from parallel.world import start, stop
from trainer.exit_weights import exit_weights
from trainer.losses import exit_losses
from trainer.recipe_config import ExitLossConfig

MIB = 2**20
EXITS, VOCABULARIES = (1, 4, 16), (32_000, 128_000)
POSITIONS, CHUNK, WIDTH = 256, 64, 256
RECIPE = ExitLossConfig(e_scale=0.2, curriculum="rotational", rotation=8)
MODEL = LlamaConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=32,
    num_attention_heads=4,
    max_position_embeddings=256,
)
ROWS, SEQ_LEN, ROUNDS = 4, 128, 3

Hiddens = dict[int, Tensor]
"""For each exit its hidden states (1, N, D)."""
Method = Callable[[Llama, Hiddens, Tensor], None]
"""Loss and backward pass of a model's head on hidden states and labels (1, N)."""


def head_only(vocab_size: int) -> Llama:
    """Return a Llama of which only norm and head are used."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = Llama(config)
    init_weights(model, config, seed=0)
    return model


def make_hiddens(num_exits: int) -> Hiddens:
    """Return random hidden states; those of higher exits depend on those of lower ones."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, POSITIONS, WIDTH, generator=generator).requires_grad_()
    hiddens = {}
    for e in range(1, num_exits + 1):
        h = h * 1.0
        hiddens[e] = h
    return hiddens


def ours(model: Llama, hiddens: Hiddens, labels: Tensor) -> None:
    """Run loss and backward pass of (1, N) labels as training does."""
    weights = dict.fromkeys(hiddens, 1 / len(hiddens))
    losses = exit_losses(
        model,
        hiddens,
        labels,
        weights,
        total_tokens=POSITIONS,
        chunk_tokens=CHUNK,
        measure=False,
    )
    (e,) = losses.gradients
    hiddens[e].backward(losses.gradients[e])  # type: ignore[no-untyped-call]


def by_autograd(model: Llama, hiddens: Hiddens, labels: Tensor) -> None:
    """Run loss and backward pass of (1, N) labels with the logits of all exits at once."""
    losses = [cross_entropy(model.unembed(h)[0], labels[0]) for h in hiddens.values()]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]


def by_torch(model: Llama, hiddens: Hiddens, labels: Tensor) -> None:
    """Run loss and backward pass of (1, N) labels with torch's chunks, of the same size.

    The size that it chooses by itself is far too small for a processor.
    """
    head = model.head_parameters()[1]
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
    losses = [
        linear_cross_entropy(model.model.norm(h)[0], head, labels[0], options=options)
        for h in hiddens.values()
    ]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]


METHODS: dict[str, Method] = {"ours": ours, "all logits, autograd": by_autograd, "torch": by_torch}


def three_products(model: Llama, hiddens: Hiddens, labels: Tensor) -> None:
    """Multiply what the logits of (1, N) positions and their gradient need, and nothing else."""
    weight = model.head_parameters()[1].detach()
    for h in hiddens.values():
        for states in torch.split(h.detach()[0], CHUNK):  # (C, D)
            logits = states @ weight.t()
            logits @ weight
            logits.t() @ states


def cost(method: Method, model: Llama, num_exits: int) -> tuple[int, float]:
    """Return peak bytes beside weights and hidden states, and seconds of processor time."""
    hiddens, labels = make_hiddens(num_exits), torch.arange(POSITIONS)[None]
    model.zero_grad()
    seconds = -time.process_time()
    peak = peak_bytes(partial(method, model, hiddens, labels))
    return peak, seconds + time.process_time()


def measure_head(vocab_size: int, num_exits: int) -> list[dict[str, Any]]:
    """Return a row for each method."""
    model = head_only(vocab_size)
    cost(three_products, model, 1)  # warm up
    _, ideal = cost(three_products, model, num_exits)
    rows = []
    for name, method in METHODS.items():
        peak, seconds = cost(method, model, num_exits)
        row = {"vocabulary": vocab_size, "exits": num_exits, "method": name}
        figures = {"cpu_seconds": seconds, "exit_over_products": seconds / ideal}
        rows.append(row | {"peak_mib": peak / MIB} | figures)
    return rows


def recipe_flops(step: int | None) -> float:
    """Return the FLOPs of a step of the recipe; None is the plain step."""
    exits = 1 if step is None else len(recipe_weights(step))
    return flops_of_plan(
        full(MODEL.num_hidden_layers),
        MODEL,
        rows=ROWS,
        seq_len=SEQ_LEN,
        num_exits_unembedded=exits,
        backward=True,
    )


def recipe_weights(step: int | None) -> dict[int, float]:
    """Return the weight of each exit at a step of the recipe; None is the plain step."""
    config = None if step is None else RECIPE
    return exit_weights(config, MODEL.num_hidden_layers, step or 0, 1000)


def ideal_ratio() -> float:
    """Return the mean FLOPs of the steps of a rotation over those of the plain step."""
    return mean(recipe_flops(i) for i in range(RECIPE.period)) / recipe_flops(None)


def measure_recipe(precision: Literal["float32", "bfloat16"]) -> dict[str, Any]:
    """On a rank: time the steps of a whole rotation against as many plain steps."""
    world = start(device="cpu")
    engine = make_engine(MODEL, ParallelConfig(precision=precision), world)
    batch = random_batch(MODEL, ROWS, SEQ_LEN)

    def step(index: int | None) -> None:
        weights = recipe_weights(index)
        plan = full(MODEL.num_hidden_layers, exits=tuple(weights))
        run_step(engine, [batch], [plan], weights, world=world)

    def rotation(plain: bool) -> None:
        for index in range(RECIPE.period):
            step(None if plain else index)

    jobs = {"plain": partial(rotation, True), "recipe": partial(rotation, False)}
    step(None)
    times = interleave(jobs, rounds=ROUNDS, warmup=0)
    stop()
    return {
        "precision": precision,
        "plain_step_seconds": times["plain"].median() / RECIPE.period,
        "mean_exits": mean(len(recipe_weights(i)) for i in range(RECIPE.period)),
        "ideal": ideal_ratio(),
        "step_over_plain": asdict(ratio(times["recipe"], times["plain"])),
        "step_over_plain_cpu": asdict(ratio(times["recipe"], times["plain"], "cpu")),
    }


def head_table(rows: list[dict[str, Any]]) -> str:
    """Return the first table as text."""
    columns = ("V", "exits", "method", "peak MiB", "CPU s", "an exit / its products")
    keys = ("vocabulary", "exits", "method", "peak_mib", "cpu_seconds", "exit_over_products")
    return text_table(columns, [[row[key] for key in keys] for row in rows])


def recipe_table(rows: list[dict[str, Any]]) -> str:
    """Return the second table as text."""
    columns = ("precision", "plain step s", "mean exits", "FLOPs", "time (quartiles)", "CPU time")
    keys = ("precision", "plain_step_seconds", "mean_exits", "ideal")
    clocks = ("step_over_plain", "step_over_plain_cpu")
    cells = [
        [*(row[key] for key in keys), *(str(Spread(**row[clock])) for clock in clocks)]
        for row in rows
    ]
    return text_table(columns, cells)


def main() -> None:
    """Measure and print both tables, then a JSON line for each of their rows."""
    torch.set_num_threads(1)  # so that processor time is work, not waiting for the other threads
    heads = [row for v in VOCABULARIES for x in EXITS for row in measure_head(v, x)]
    sys.stdout.write(f"{head_table(heads)}\n\n")
    recipes = [on_ranks(1, measure_recipe, p)[0] for p in ("float32", "bfloat16")]
    sys.stdout.write(f"{recipe_table(recipes)}\n")
    sys.stdout.writelines(json_line("exit_loss", **row) + "\n" for row in [*heads, *recipes])


if __name__ == "__main__":
    main()
