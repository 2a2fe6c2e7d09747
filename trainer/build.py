"""From a config to the parts of a run: pure wiring, no policy."""

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from data_pipelines.loader import Loader
from data_pipelines.mixture import MixtureLoader, merge_states
from data_pipelines.open import describe_sources, open_train, open_valid
from data_pipelines.prepare import TOKENIZER_FOLDER, read_prepared
from data_pipelines.prepare_sources import prepare_data
from models.config import LlamaConfig
from models.hf import load_weights
from models.hf_config import config_to_hf
from models.init import Assign, init_weights
from models.llama import Llama
from models.lora import init_adapters
from models.training_cost import ModelShapes, shapes_of
from parallel.agree import agree_on_settings
from parallel.base import Base, write_base
from parallel.checkpoint import MODEL, OPTIMIZER, TOKENIZER, read_state, read_tensors
from parallel.checkpointer import Checkpointer
from parallel.engine import Engine, build_engine
from parallel.publish import latest, tidy
from parallel.reduce import on_first_rank
from parallel.timeouts import Group, open_groups, set_timeout
from parallel.together import all_ranks
from parallel.verified import good_checkpoint
from parallel.world import World
from parallel.zero_config import check_user_config
from trainer.config import PretrainConfig
from trainer.evaluation import spared_steps
from trainer.model_shape import check_described, model_config
from trainer.optim import build_adamw
from trainer.run_folder import CONFIG, check_resumable, checkpoints_folder, claim, describe_run
from trainer.same_start import config_settings, data_settings
from trainer.spikes import SpikeState, data_step, jump, spike_state
from trainer.trained import find_base, unfilled_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything the loop works with."""

    config: PretrainConfig
    model_config: LlamaConfig
    parts: ModelShapes
    """What of the model is trained."""
    world: World
    engine: Engine
    train: Loader | MixtureLoader
    valid: Loader
    data_folder: Path
    checkpointer: Checkpointer
    first_step: int
    """Optimiser steps that are done already."""
    tokens_seen: int
    spikes: SpikeState
    """What is remembered of the steps that are done."""
    step_groups: tuple[Group, ...]
    """Process groups whose collectives a step waits for."""
    base: Base | None
    """The model of which a part stays as it is; None: all is trained."""
    lock: TextIO | None
    """Held open by rank 0 while the run folder is in use."""


def build_run(config: PretrainConfig, world: World) -> Run:
    """Prepare data, build and shard the model, and go on from the newest checkpoint if any.

    Raises:
        ValueError: if config, data and checkpoint do not fit together.
        RuntimeError: if a checkpoint is not complete, or ranks were started differently.
    """
    agree_on_settings("config", config_settings(config))
    check_described(config)
    shape = model_config(config)
    config.batch.check_ranks(world.size)
    check_user_config(config.parallel, config.deepspeed_keys(world.size))
    lock = claim(config) if world.is_first else None
    newest = _find_newest(config)
    data_folder = on_first_rank(lambda: prepare_data(config.data))
    agree_on_settings("data", data_settings(data_folder, newest))
    _check_vocabulary(data_folder, shape)
    if newest is not None:
        newest = good_checkpoint(newest, strict=config.resume == "strict")
    base = on_first_rank(lambda: find_base(config.init_from, config.lora, config.freeze, newest))
    model = unfilled_model(shape, config.lora, config.freeze)
    parts = shapes_of(model, shape)
    engine = build_engine(
        model,
        config.parallel,
        world,
        fill=lambda sharded, assign: _fill(sharded, assign, config),
        make_optimizer=lambda sharded: build_adamw(sharded, config.optim),
    )
    step_groups = open_groups()  # not yet that of checkpoints, which may wait for slow disks
    set_timeout(step_groups, config.parallel.long_timeout_seconds)
    state: dict[str, Any] = {"step": 0, "tokens_seen": 0}
    if newest is not None:
        state = _read_into(engine, newest)
        if "data" in state:
            _check_data(state["data"], data_folder, newest)
    if world.is_first:
        describe_run(config)
    train = _open_train(config, data_folder, state)
    if world.is_first:
        for line in describe_sources(train, config.steps):
            logger.info("%s", line)
    return Run(
        config=config,
        model_config=shape,
        parts=parts,
        world=world,
        engine=engine,
        train=train,
        valid=open_valid(
            config.data,
            data_folder,
            seed=config.seed,
            micro_batch_size=config.batch.micro_size,
        ),
        data_folder=data_folder,
        checkpointer=Checkpointer(
            checkpoints_folder(config),
            engine,
            keep_last=config.checkpoint.keep_last,
            asynchronous=config.checkpoint.asynchronous,
            spared=partial(spared_steps, config),
        ),
        first_step=state["step"],
        tokens_seen=state["tokens_seen"],
        spikes=spike_state(state.get("spikes")),
        step_groups=step_groups,
        base=base,
        lock=lock,
    )


def _find_newest(config: PretrainConfig) -> Path | None:
    """Return the checkpoint that a run would go on from, after putting its folder in order.

    Raises:
        ValueError: if it may not.
    """
    folder = checkpoints_folder(config)
    newest = latest(folder)
    if newest is not None:
        if config.resume == "never":
            raise ValueError(
                f"run_folder {config.run_folder} has checkpoints and resume is never: choose "
                "another run_folder, or resume=auto to go on"
            )
        if (Path(config.run_folder) / CONFIG).is_file():  # a converted checkpoint has none
            check_resumable(config)
    on_first_rank(lambda: tidy(folder))
    return latest(folder)


def _read_into(engine: Engine, checkpoint: Path) -> dict[str, Any]:
    """Give an engine the weights and moments of a checkpoint; return the rest of its state."""
    state = read_state(checkpoint)
    read_tensors(checkpoint, MODEL, engine.weights())
    read_tensors(checkpoint, OPTIMIZER, engine.optimizer_state())
    return state


def go_back(run: Run, spikes: SpikeState, *, spike_step: int) -> Run:
    """Return the run as it was at its newest checkpoint, to go on with the data after a spike.

    Args:
        run: its engine has forgotten the gradients of the spike.
        spikes: what is remembered now.
        spike_step: the optimiser step (from 0) whose update was left out.

    Raises:
        RuntimeError: if there is no checkpoint yet.
    """
    run.checkpointer.wait()
    newest = latest(checkpoints_folder(run.config))
    if newest is None:
        raise RuntimeError(
            f"step {spike_step} is to be rolled back, but there is no checkpoint yet: lower "
            f"checkpoint.every, now {run.config.checkpoint.every}, or set spikes.policy=skip"
        )
    newest = good_checkpoint(newest, strict=run.config.resume == "strict")
    state = _read_into(run.engine, newest)
    before = spike_state(state.get("spikes"))
    return replace(
        run,
        train=_open_train(run.config, run.data_folder, state),
        first_step=state["step"],
        tokens_seen=state["tokens_seen"],
        spikes=jump(before, spikes, step=state["step"], spike=spike_step),
    )


def _check_vocabulary(data_folder: Path, shape: LlamaConfig) -> None:
    size = read_prepared(data_folder).vocab_size
    if size > shape.vocab_size:
        raise ValueError(
            f"model.vocab_size {shape.vocab_size} is smaller than the tokenizer's {size}: raise it "
            "or take the model's own tokenizer with data.tokenizer.path"
        )


def _check_data(before: str, data_folder: Path, checkpoint: Path) -> None:
    """The order of the samples is a function of the step only while the data stays the same."""
    if data_folder.name != before:
        raise ValueError(
            f"the data changed since {checkpoint} (prepared as {before}, now {data_folder.name}): "
            "give the old files back, or choose another run_folder"
        )


def _fill(model: Llama, assign: Assign, config: PretrainConfig) -> None:
    """Give a model its first weights, the same whatever the number of ranks."""
    if config.init_from is None:
        init_weights(model, model.config, seed=config.seed, assign=assign)
    else:
        load_weights(model, config.init_from, assign=assign)
        init_adapters(model.named_parameters(), seed=config.seed, assign=assign)


def _open_train(
    config: PretrainConfig, data_folder: Path, state: dict[str, Any]
) -> Loader | MixtureLoader:
    return open_train(
        config.data,
        data_folder,
        seed=config.seed,
        micro_batch_size=config.batch.micro_size,
        num_microbatches=config.batch.num_microbatches,
        state=state.get("data_state"),
    )


def save(run: Run, step: int, tokens_seen: int, spikes: SpikeState, *, last: bool) -> None:
    """Save a checkpoint after `step` steps: weights, optimizer, position, config, tokenizer.

    Args:
        run: what to save.
        step: finished optimiser steps.
        tokens_seen: in them.
        spikes: what is remembered of them.
        last: whether nothing will be saved after it, so that a lack of room is an error.
    """

    def write_extras(folder: Path) -> None:
        shutil.copy(Path(run.config.run_folder) / CONFIG, folder / CONFIG)
        shutil.copytree(run.data_folder / TOKENIZER_FOLDER, folder / TOKENIZER)
        described = json.dumps(config_to_hf(run.model_config, dtype="float32"), indent=1)
        (folder / MODEL / "config.json").write_text(described)
        if run.base is not None:
            write_base(folder, run.base)

    mine = run.train.state(data_step(spikes, step))
    streams = merge_states(all_ranks(mine)) if mine else {}
    run.checkpointer.save(
        step,
        {
            "tokens_seen": tokens_seen,
            "world_size": run.world.size,
            "data": run.data_folder.name,
            **({"spikes": spikes.as_json()} if spikes != SpikeState() else {}),
            **({"data_state": streams} if streams else {}),
        },
        write_extras,
        may_be_left_out=not last,
    )
