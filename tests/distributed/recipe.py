"""A few training steps with everything on: by our engine, and by a plain loop to compare with."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_pipelines.loader import Batch
from models.config import LlamaConfig
from models.init import init_weights
from models.llama import Llama
from models.plan import LayerPlan
from models.tokens import make_tokens
from parallel.config import ParallelConfig
from parallel.engine import Engine, build_engine
from parallel.flat_shard import FlatShard
from parallel.world import World, start
from tests.tiny import tiny_config
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import plan_step
from trainer.optim import OptimConfig, build_adamw
from trainer.recipe_config import ExitLossConfig, LayerDropoutConfig
from trainer.step import train_step

STEPS, MICROBATCHES, ROWS, LENGTH = 5, 4, 4, 12
OPTIM = OptimConfig(lr=1e-2, clip_norm=0.5, weight_decay=0.1)
DROPOUT = LayerDropoutConfig(max_prob=0.8)
EXITS = ExitLossConfig(e_scale=0.5, curriculum="rotational", rotation=2)


def model_config(**changes: object) -> LlamaConfig:
    return tiny_config(num_hidden_layers=5, **changes)


def microbatch(step: int, index: int, vocab: int = 96) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + index)
    ids = torch.randint(0, vocab, (ROWS, LENGTH), generator=generator)
    labels = torch.randint(0, vocab, (ROWS, LENGTH), generator=generator)
    labels[0, : 1 + index] = -100  # microbatches have different numbers of valid tokens
    return Batch(ids, labels, torch.arange(LENGTH)[None], None)


def plan_and_weights(step: int, index: int, num_layers: int) -> tuple[LayerPlan, dict[int, float]]:
    weights = exit_weights(EXITS, num_layers, step, STEPS)
    plan = plan_step(
        DROPOUT,
        num_layers=num_layers,
        step=step,
        total_steps=STEPS,
        seed=7,
        microbatch=index,
        rows=ROWS,
        exits=tuple(weights),
    )
    return plan, weights


def make_engine(
    config: LlamaConfig,
    parallel: ParallelConfig,
    world: World,
    dtype: torch.dtype = torch.float64,
    optim: OptimConfig = OPTIM,
    prepare: Callable[[Llama], None] = lambda model: None,
) -> Engine:
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    prepare(model)
    return build_engine(
        model,
        parallel,
        world,
        fill=lambda m, assign: init_weights(m, config, seed=3, assign=assign),
        make_optimizer=lambda m: build_adamw(m, optim),
    )


def engine_steps(
    engine: Engine,
    world: World,
    steps: Sequence[int] = range(STEPS),
    chunk: int = 10_000,
    batch: Callable[[int, int], Batch] = microbatch,
) -> list[float]:
    """Train; return the losses."""
    losses = []
    for step in steps:
        mine = range(world.rank, MICROBATCHES, world.size)
        drawn = [plan_and_weights(step, g, engine.model.config.num_hidden_layers) for g in mine]
        result = train_step(
            engine,
            [batch(step, g) for g in mine],
            [plan for plan, _ in drawn],
            drawn[0][1],
            step=step,
            learning_rate=OPTIM.lr,
            clip_norm=OPTIM.clip_norm,
            chunk_tokens=chunk,
            device=world.device,
        )
        losses.append(result.loss)
    return losses


def whole(tensor: Tensor) -> Tensor:
    if isinstance(tensor, FlatShard):
        parts = torch.zeros(tensor.shape, dtype=tensor.dtype)
        for box in tensor.boxes():
            sides = zip(box.offset, box.part.shape, strict=True)
            parts[tuple(slice(start, start + length) for start, length in sides)] = box.part
        dist.all_reduce(parts)
        return parts
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained_by_engine(
    parallel: ParallelConfig,
    tied: bool = False,
    chunk: int = 10_000,
    dtype: torch.dtype = torch.float64,
    optim: OptimConfig = OPTIM,
    prepare: Callable[[Llama], None] = lambda model: None,
) -> dict[str, Tensor]:
    """On this rank: train, return whole parameters and moments, and the losses."""
    world = start(device="cpu")
    config = model_config(tie_word_embeddings=tied)
    engine = make_engine(config, parallel, world, dtype, optim, prepare)
    losses = engine_steps(engine, world, chunk=chunk)
    state = {**engine.weights(), **engine.optimizer_state()}
    return {name: whole(t).clone() for name, t in state.items()} | {"losses": torch.tensor(losses)}


def plain_loss(model: Llama, step: int, index: int) -> Tensor:
    """Return the weighted loss of a microbatch, not yet divided: autograd over all of it."""
    tokens = make_tokens(model.config, torch.arange(LENGTH)[None])
    batch = microbatch(step, index)
    plan, weights = plan_and_weights(step, index, model.config.num_hidden_layers)
    loss = torch.zeros((), dtype=torch.float64)
    for e, h in model(batch.ids, tokens, plan).items():
        logits = model.unembed(h).flatten(0, 1)
        loss = loss + weights[e] * cross_entropy(logits, batch.labels.flatten(), reduction="sum")
    return loss


def trained_plainly(
    tied: bool = False,
    batch: Callable[[int, int], Batch] = microbatch,
    loss_of: Callable[[Llama, int, int], Tensor] = plain_loss,
    optim: OptimConfig = OPTIM,
    prepare: Callable[[Llama], None] = lambda model: None,
) -> dict[str, Tensor]:
    """One process, one loop, nothing of the engine."""
    config = model_config(tie_word_embeddings=tied)
    model = Llama(config).double()
    prepare(model)
    init_weights(model, config, seed=3)
    optimizer = build_adamw(model, optim)
    losses = []
    for step in range(STEPS):
        count = sum(int((batch(step, g).labels != -100).sum()) for g in range(MICROBATCHES))
        sums = [loss_of(model, step, g) for g in range(MICROBATCHES)]
        loss = torch.stack(sums).sum() / count
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm or 0)
        optimizer.step()
        losses.append(float(loss.detach()))
    state = {name: p.detach() for name, p in trained.items()}
    for name, p in trained.items():
        state |= {f"{key}.{name}": value for key, value in optimizer.state[p].items()}
    return state | {"losses": torch.tensor(losses)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs().max()
        assert difference <= tolerance, f"{name} differs by {difference}"
