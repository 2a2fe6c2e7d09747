"""`--check`: what a config would do and cost, said before data is read or a process started."""

import os

import torch

from configs.load import to_yaml
from data_pipelines.missing import missing_files
from models.config import LlamaConfig
from models.flops import count_parameters
from models.llama import Llama
from models.training_cost import ModelShapes, num_numbers, shapes_of
from parallel.config import ParallelConfig
from parallel.cost import Method, Sharding, step_traffic, total_traffic
from parallel.memory import Workload, rank_memory, staged_bytes
from parallel.zero_config import check_user_config
from trainer.config import PretrainConfig
from trainer.exit_weights import exit_weights
from trainer.expectation import StepCost, expected_around, expected_run
from trainer.head_loss import chunk_size
from trainer.layer_dropout import drop_probabilities
from trainer.model_shape import model_config
from trainer.optim import parameter_groups
from trainer.schedule import learning_rate
from trainer.trained import unfilled_model

GIB = 2**30
METHODS: dict[int, Method] = {1: "zero-1", 2: "zero-2", 3: "zero-3"}
COLUMNS = (
    f"{'step':<10} {'lr':<10} {'p of last':<10} {'FLOPs':<10} {'recomputed':<10} {'saved':<7} "
    f"{'collectives':<12} {'GiB sent':<9} exits and weights"
)


def check_report(config: PretrainConfig) -> str:
    """Return the resolved config, sizes, memory, communication and schedule as text.

    Raises:
        ValueError: if config and model do not fit, or the ranks cannot share the batch.
    """
    model = model_config(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config.batch.check_ranks(ranks)
    check_user_config(config.parallel, config.deepspeed_keys(ranks))
    sharding = sharding_of(config.parallel, ranks)
    unfilled = unfilled_model(model, config.lora, config.freeze)
    parts = shapes_of(unfilled, model)
    sections = (
        _sizes(config, model, parts),
        _groups(config, unfilled),
        _memory(config, model, sharding, parts),
        _schedule(config, model, sharding, parts),
        _whole_run(config, model, sharding, parts),
        _evaluations(config),
        _missing(config),
    )
    return "\n".join((to_yaml(config), *sections))


def sharding_of(parallel: ParallelConfig, ranks: int) -> Sharding:
    """Return what costs depend on: gathers in the compute type, reductions in float32.

    Raises:
        ValueError: if the shard groups do not fill the ranks.
    """
    width = 2 if parallel.precision == "bfloat16" else 4
    if parallel.zero is not None:
        return Sharding(
            ranks=ranks,
            method=METHODS[parallel.zero.stage],
            gather_width=width,
            reduce_every_microbatch=parallel.zero.stage > 1,
        )
    return Sharding(
        ranks=ranks,
        shard_ranks=parallel.sharding.ranks_of_a_copy(ranks),
        reshard_after_forward=parallel.sharding.reshard_after_forward,
        gather_width=width,
    )


def workload_of(config: PretrainConfig, model: LlamaConfig, ranks: int) -> Workload:
    """Return what one of so many ranks computes at once."""
    on_cpu = config.parallel.device == "cpu" or torch.accelerator.current_accelerator() is None
    half = config.parallel.precision == "bfloat16"
    return Workload(
        rows=config.batch.micro_size,
        seq_len=config.data.seq_len,
        chunk_tokens=chunk_size(model.vocab_size, config.loss_chunk_tokens),
        recompute=config.parallel.recompute,
        accumulate=config.batch.num_microbatches > ranks,
        wide_attention=half and on_cpu and not config.data.cross_document_attention,
    )


def _sizes(config: PretrainConfig, model: LlamaConfig, parts: ModelShapes) -> str:
    count = count_parameters(model)
    trained = sum(num_numbers(unit.trained) for unit in parts.units)
    is_part = config.lora is not None or config.freeze is not None
    line = f"trained: {trained:,}, the others stay as they are\n" if is_part else ""
    tokens = config.batch.global_size * config.data.seq_len
    return (
        f"parameters: {count.total:,} ({count.layers:,} in layers, {count.embedding:,} embedding, "
        f"{count.head:,} head)\n"
        f"{line}"
        f"tokens: {tokens:,} a step, {tokens * config.steps:,} in all\n"
    )


def _groups(config: PretrainConfig, unfilled: Llama) -> str:
    """Say which share of the learning rate how many parameters learn at, if they differ."""
    groups = parameter_groups(unfilled, config.optim)
    if config.optim.groups is None and config.optim.layer_decay is None:
        return ""
    return "".join(
        f"learning rate x {group.lr_scale:.4g}, weight decay {group.weight_decay:g}: "
        f"{sum(p.numel() for p in group.parameters):,} parameters\n"
        for group in groups
    )


def _memory(
    config: PretrainConfig, model: LlamaConfig, sharding: Sharding, parts: ModelShapes
) -> str:
    """Say the peak of one rank, which is that of the plan that drops nothing."""
    memory = rank_memory(model, sharding, workload_of(config, model, sharding.ranks), parts)
    sizes = {
        f"peak memory estimate of one rank of {sharding.ranks}, no layer dropped": memory.total,
        "  weights and moments, always": memory.states,
        "  beside them while the loss is computed": memory.loss,
        "  beside them while the last layer goes backward": memory.backward,
        "  beside them when the last gradient is reduced": memory.reduction,
        "  among these: activations": memory.activations,
        "  among these: gathered weights": memory.gathered,
        "  among these: gradients of the own shard": memory.gradients,
    }
    if config.checkpoint.asynchronous:
        sizes["host memory besides, for background saves"] = staged_bytes(model, sharding, parts)
    return "".join(f"{text}: {size / GIB:.3f} GiB\n" for text, size in sizes.items())


def _schedule(
    config: PretrainConfig, model: LlamaConfig, sharding: Sharding, parts: ModelShapes
) -> str:
    """Show five moments; what depends on the exits is a mean over one rotation."""
    num_layers, last = model.num_hidden_layers, config.steps - 1
    lines = [
        "expected step: FLOPs of all ranks, collectives of each and what it sends (and receives)",
        COLUMNS,
    ]
    for step in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        rate = learning_rate(config.schedule, config.optim.lr, step, config.steps)
        p = drop_probabilities(config.layer_dropout, num_layers, step, config.steps)
        weights = exit_weights(config.exit_loss, num_layers, step, config.steps)
        exits = " ".join(f"{e}:{w:.3f}" for e, w in weights.items())
        cost = expected_around(config, model, step, parts)
        count, sent = traffic_of(cost, config, model, sharding, parts)
        lines.append(
            f"{step:<10} {rate:<10.3g} {p[-1]:<10.3f} {cost.flops:<10.3g} {cost.recomputed:<10.3g} "
            f"{cost.saved:<7.1%} {count:<12.1f} {sent / GIB:<9.3g} {exits}"
        )
    return "\n".join(lines) + "\n"


def traffic_of(
    cost: StepCost,
    config: PretrainConfig,
    model: LlamaConfig,
    sharding: Sharding,
    parts: ModelShapes | None = None,
) -> tuple[float, float]:
    """Return the collectives of each rank in a mean step, and the bytes it sends in them."""
    share = cost.visits / model.num_hidden_layers
    traffic = step_traffic(
        model,
        sharding,
        visited=[share] * model.num_hidden_layers,
        microbatches=config.batch.num_microbatches // sharding.ranks,
        parts=parts,
    )
    return total_traffic(traffic)


def _whole_run(
    config: PretrainConfig, model: LlamaConfig, sharding: Sharding, parts: ModelShapes
) -> str:
    total = expected_run(config, model, parts)
    mean = StepCost(*(value / config.steps for value in total))
    count, sent = traffic_of(mean, config, model, sharding, parts)
    return (
        f"whole run: {total.flops:.3g} FLOPs and {total.recomputed:.3g} recomputed; "
        f"{total.saved:.1%} saved of {total.full_flops:.3g}; each rank sends "
        f"{sent * config.steps / GIB:.3g} GiB in {count * config.steps:,.0f} collectives\n"
    )


def _evaluations(config: PretrainConfig) -> str:
    """Say how many checkpoints are evaluated, and how many there may be on the disk for it."""
    section = config.evaluate
    if section is None:
        return ""
    count = -(-config.steps // section.every)
    exits = ", ".join(map(str, section.exits))
    most = config.checkpoint.keep_last + 1 + section.keep
    return (
        f"evaluations: {count}, every {section.every} steps and at the end, at exits {exits}, on "
        f"device {section.device} beside rank 0; up to {most} checkpoints on the disk\n"
    )


def _missing(config: PretrainConfig) -> str:
    """Say which files the run would look for in vain, if it started here and now."""
    names = missing_files(config.data)
    return f"not here, and the run would stop without: {', '.join(names)}\n" if names else ""
