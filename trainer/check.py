"""`--check`: what a config would do, said before any data is read or any process started."""

import os

from configs.load import to_yaml
from models.config import LlamaConfig
from models.flops import count_parameters, flops_of_plan
from models.plan import full
from trainer.build import model_config
from trainer.config import PretrainConfig
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import drop_probabilities
from trainer.schedule import learning_rate

GIB = 2**30
MOMENTS = 3
"""Master weight, and Adam's two means of it: float32 numbers for each parameter, sharded."""


def check_report(config: PretrainConfig) -> str:
    """Return the resolved config, sizes, memory estimate and schedule as text.

    Raises:
        ValueError: if config and model do not fit.
    """
    model = model_config(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config.batch.check_ranks(ranks)
    sections = (_sizes(config, model), _memory(config, model, ranks), _schedule(config, model))
    return "\n".join((to_yaml(config), *sections))


def _sizes(config: PretrainConfig, model: LlamaConfig) -> str:
    count = count_parameters(model)
    tokens = config.batch.global_size * config.data.seq_len
    step = flops_of_plan(
        full(model.num_hidden_layers),
        model,
        rows=config.batch.global_size,
        seq_len=config.data.seq_len,
        num_exits_unembedded=1,
        backward=True,
    )
    return (
        f"parameters: {count.total:,} ({count.layers:,} in layers, {count.embedding:,} embedding, "
        f"{count.head:,} head)\n"
        f"tokens: {tokens:,} a step, {tokens * config.steps:,} in all\n"
        f"FLOPs of a step without dropout and exits: {step:.3g}\n"
    )


def _memory(config: PretrainConfig, model: LlamaConfig, ranks: int) -> str:
    """Estimate the memory of one rank: states, one gathered layer and root, activations, logits."""
    count = count_parameters(model)
    width = 2 if config.parallel.precision == "bfloat16" else 4
    shard = config.parallel.fsdp.shard_size or ranks
    states = count.total * (MOMENTS + 1) * 4 / shard  # + 1: the gradient
    layer = count.layers / model.num_hidden_layers
    root = count.embedding + count.head + count.norm
    gathered = 2 * width * (2 * layer + root)  # weights and gradients, the next layer prefetched
    positions = config.batch.micro_size * config.data.seq_len
    kept = model.hidden_size * (1 if config.parallel.recompute else 8)
    if not config.parallel.recompute:
        kept += 2 * (model.num_attention_heads + model.kv_heads) * model.head_width
        kept += 4 * model.intermediate_size
    activations = positions * kept * model.num_hidden_layers * width
    logits = min(positions, config.loss_chunk_tokens) * model.vocab_size * (width + 8)
    parts = {
        "weights, gradients, moments": states,
        "gathered layer and head": gathered,
        "activations": activations,
        "logits of one chunk": logits,
    }
    lines = [f"  {name}: {size / GIB:.3f} GiB" for name, size in parts.items()]
    total = sum(parts.values()) / GIB
    return "\n".join([f"memory estimate of one rank of {ranks}: {total:.3f} GiB", *lines, ""])


def _schedule(config: PretrainConfig, model: LlamaConfig) -> str:
    """Show the learning rate, drop probability, exits and expected FLOPs at five moments."""
    num_layers, last = model.num_hidden_layers, config.steps - 1
    lines = ["step       lr         p of last layer  expected FLOPs  exits and weights"]
    for step in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        rate = learning_rate(config.schedule, config.optim.lr, step, config.steps)
        p = drop_probabilities(config.layer_dropout, num_layers, step, config.steps)
        weights = exit_weights(config.exit_loss, num_layers, step, config.steps)
        exits = " ".join(f"{e}:{w:.3f}" for e, w in weights.items())
        kept = 1 - sum(p) / num_layers
        lines.append(f"{step:<10} {rate:<10.3g} {p[-1]:<16.3f} {kept:<15.3f} {exits}")
    return "\n".join(lines) + "\n"
