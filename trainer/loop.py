"""The training loop: step, log, validate, save, stop."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data_pipelines.loader import Batch, prefetch
from models.flops import flop_fraction, flops_of_plan
from models.plan import LayerPlan, Rows
from models.ranges import named
from trainer.build import Run, save
from trainer.device_peaks import device_peak, peak_memory
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import drop_probabilities, plan_step
from trainer.metrics import StepMetrics
from trainer.observe import Observers
from trainer.profile import each_named, profiled
from trainer.schedule import learning_rate
from trainer.signals import StopRequest
from trainer.step import StepResult, train_step
from trainer.validate import validate


def train(run: Run) -> None:
    """Train to the last step, or until a signal asks to stop; save in both cases.

    Raises:
        RuntimeError: on all ranks, if ranks disagree or numbers are not finite.
    """
    config, stop = run.config, StopRequest()
    step, tokens_seen = run.first_step, run.tokens_seen
    profiling = profiled(Path(config.run_folder), run.world.rank, enabled=config.profile)
    with Observers(run) as observers, profiling as end_profiled_step:
        for batches in each_named("data", prefetch(_batches(run), depth=2)):
            began = time.perf_counter()
            with named("plan"):
                plans, weights = plan_microbatches(run, step, batches)
            log = _is_due(step + 1, config.log_every, config.steps)
            result = train_step(
                run.engine,
                batches,
                plans,
                weights,
                step=step,
                learning_rate=learning_rate(config.schedule, config.optim.lr, step, config.steps),
                clip_norm=config.optim.clip_norm,
                chunk_tokens=config.loss_chunk_tokens,
                device=run.world.device,
                stop=stop.is_set or run.checkpointer.failed,  # `save` then says what failed
                measure=log,
            )
            seconds = time.perf_counter() - began
            step, tokens_seen = step + 1, tokens_seen + result.valid_tokens
            if log:
                observers.train(
                    step_metrics(run, step, plans[0], weights, result, seconds, tokens_seen)
                )
            else:
                observers.advance(step)
            if _is_due(step, config.validate.every, config.steps):
                observers.valid(
                    validate(
                        run.engine,
                        run.valid,
                        run.world,
                        step=step,
                        sequences=config.validate.sequences,
                        chunk_tokens=config.loss_chunk_tokens,
                    )
                )
            if result.stop or _is_due(step, config.checkpoint.every, config.steps):
                with named("checkpoint"):
                    save(run, step, tokens_seen)
            end_profiled_step()
            if result.stop:
                break
        run.checkpointer.wait()
        observers.finished = step == config.steps


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _batches(run: Run) -> Iterator[list[Batch]]:
    """Yield this rank's microbatches of each step that is left."""
    mine = range(run.world.rank, run.config.batch.num_microbatches, run.world.size)
    for step in range(run.first_step, run.config.steps):
        yield [run.train.microbatch(step, index) for index in mine]


def plan_microbatches(
    run: Run, step: int, batches: Sequence[Batch]
) -> tuple[list[LayerPlan], dict[int, float]]:
    """Return the plan of each of this rank's microbatches of (B, S) ids, and the exits' weights."""
    config, num_layers = run.config, run.model_config.num_hidden_layers
    weights = exit_weights(config.exit_loss, num_layers, step, config.steps)
    plans = [
        plan_step(
            config.layer_dropout,
            num_layers=num_layers,
            step=step,
            total_steps=config.steps,
            seed=config.seed,
            microbatch=run.world.rank + index * run.world.size,
            rows=batch.ids.shape[0],
            exits=tuple(weights),
        )
        for index, batch in enumerate(batches)
    ]
    return plans, weights


def step_metrics(
    run: Run,
    step: int,
    plan: LayerPlan,
    weights: dict[int, float],
    result: StepResult,
    seconds: float,
    tokens_seen: int,
) -> StepMetrics:
    """Return what a finished step is remembered by; `plan` is that of any microbatch of it."""
    config, model, rows = run.config, run.model_config, run.config.batch.micro_size
    recipe = {
        "num_layers": model.num_hidden_layers,
        "step": step - 1,
        "total_steps": config.steps,
    }
    ran = {v.layer: v.gate.rows.numel() if isinstance(v.gate, Rows) else rows for v in plan.visits}
    flops = config.batch.num_microbatches * flops_of_plan(
        plan,
        model,
        rows=rows,
        seq_len=config.data.seq_len,
        num_exits_unembedded=len(weights),
        backward=True,
    )
    peak = device_peak(run.world.device, getattr(torch, config.parallel.precision))
    return StepMetrics(
        step=step,
        loss=result.loss,
        loss_per_exit=result.loss_per_exit,
        exit_weights=weights,
        agreement_per_exit=result.agreement_per_exit,
        drop_probability=drop_probabilities(config.layer_dropout, **recipe),
        drop_rate=[1 - ran.get(layer, 0) / rows for layer in range(model.num_hidden_layers)],
        active_exits=list(weights),
        flop_fraction=flop_fraction(plan, model, rows, config.data.seq_len),
        grad_norm=result.grad_norm,
        learning_rate=learning_rate(config.schedule, config.optim.lr, step - 1, config.steps),
        step_seconds=seconds,
        tokens_per_second=result.valid_tokens / seconds,
        tokens_seen=tokens_seen,
        mfu=None if peak is None else flops / seconds / (peak * run.world.size),
        memory_bytes=peak_memory(run.world.device),
    )
