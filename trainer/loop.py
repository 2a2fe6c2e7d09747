"""The training loop: step, log, validate, save, stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_pipelines.loader import Batch, prefetch
from models.init import derive_seed
from models.plan import LayerPlan
from models.ranges import named
from parallel.timeouts import set_timeout
from trainer.build import Run, go_back, save
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import plan_step
from trainer.metrics import SpikeMetrics, ValidMetrics
from trainer.observe import Observers
from trainer.profile import each_named, profiled
from trainer.schedule import learning_rate
from trainer.signals import StopRequest
from trainer.spikes import SpikeState, data_step, find_spike
from trainer.step import StepResult, train_step
from trainer.step_record import settle, step_metrics
from trainer.validate import validate
from trainer.watchdog import Watchdog


def train(run: Run, stop: StopRequest) -> bool:
    """Train to the last step, or until a signal asks to stop; save in both cases.

    Returns:
        Whether the last step is done.

    Raises:
        RuntimeError: on all ranks, if ranks disagree, numbers are not finite, or spikes are too
            many.
        ConnectionError: if a rank does not answer.
    """
    config = run.config
    folder, parallel = Path(config.run_folder), config.parallel
    profiling = profiled(folder, run.world.rank, enabled=config.profile)
    watchdog = Watchdog(
        folder,
        run.world,
        seconds=parallel.timeout_seconds,
        long_seconds=parallel.long_timeout_seconds,
    )
    leg: Leg | bool = Leg(run)
    with watchdog, profiling as end_profiled_step:
        while isinstance(leg, Leg):
            leg = _train(leg, stop, watchdog, end_profiled_step)
    return leg


@dataclass(frozen=True, slots=True)
class Leg:
    """A run from its beginning or a checkpoint on, until its end or until it goes back."""

    run: Run
    spikes: tuple[SpikeMetrics, ...] = ()
    """What it has gone back from that its checkpoint does not know of."""


def _train(
    leg: Leg, stop: StopRequest, watchdog: Watchdog, end_profiled_step: Callable[[], object]
) -> Leg | bool:
    """Train until the end; return whether that is the last step's, or else what to go back to."""
    run, config = leg.run, leg.run.config
    step, tokens_seen, spikes = run.first_step, run.tokens_seen, run.spikes
    ahead = prefetch(_batches(run), depth=2)
    with Observers(run) as observers, closing(ahead):
        for known in leg.spikes:
            observers.spike(known)
        for batches in each_named("data", ahead):
            began = time.perf_counter()
            with named("plan"):
                plans, weights = plan_microbatches(run, step, batches)
            watchdog.begin(f"step {step}", plans, long=step == run.first_step)
            log = _is_due(step + 1, config.log_every, config.steps)
            # What failed in the background is said by the next `save`.
            asked = stop.is_set or run.checkpointer.failed
            result = _step(run, spikes, step, batches, plans, weights, stop=asked, measure=log)
            if step == run.first_step:
                set_timeout(run.step_groups, config.parallel.timeout_seconds)
            spikes, spike = settle(config.spikes, spikes, step, result)
            if spike is not None and spike.policy == "rollback":
                watchdog.begin(f"going back from step {step}", long=True)
                return _back(leg, spikes, spike)
            seconds = time.perf_counter() - began
            step, tokens_seen = step + 1, tokens_seen + result.trained_tokens
            if spike is not None:
                observers.spike(spike)
            if log:
                observers.train(
                    step_metrics(run, step, plans[0], weights, result, seconds, tokens_seen)
                )
            else:
                observers.advance(step)
            if _is_due(step, config.validate.every, config.steps):
                watchdog.begin(f"the validation after step {step - 1}", long=True)
                observers.valid(_validate(run, step))
            if result.stop or _is_due(step, config.checkpoint.every, config.steps):
                watchdog.begin(f"the checkpoint after step {step - 1}", long=True)
                with named("checkpoint"):
                    save(run, step, tokens_seen, spikes, last=result.stop or step == config.steps)
            end_profiled_step()
            watchdog.begin(f"waiting for the data of step {step}")
            if result.stop:
                break
        watchdog.begin("the last checkpoint", long=True)
        run.checkpointer.wait()
        observers.finished = step == config.steps
    return observers.finished


def _back(leg: Leg, spikes: SpikeState, spike: SpikeMetrics) -> Leg:
    run = go_back(leg.run, spikes, spike_step=spike.spike_step - 1)
    first = run.first_step + 1
    lost = (known for known in leg.spikes if known.step >= first)
    return Leg(run, (*lost, replace(spike, step=first)))


def _step(
    run: Run,
    spikes: SpikeState,
    step: int,
    batches: Sequence[Batch],
    plans: Sequence[LayerPlan],
    weights: dict[int, float],
    *,
    stop: bool,
    measure: bool,
) -> StepResult:
    config = run.config
    return train_step(
        run.engine,
        batches,
        plans,
        weights,
        step=step,
        learning_rate=learning_rate(config.schedule, config.optim.lr, step, config.steps),
        clip_norm=config.optim.clip_norm,
        chunk_tokens=config.loss_chunk_tokens,
        device=run.world.device,
        stop=stop,
        measure=measure,
        judge=None if config.spikes is None else partial(find_spike, config.spikes, spikes),
        left_out=len(spikes.left_out),
        draws=_draws(run, step),
    )


def _draws(run: Run, step: int) -> list[int] | None:
    """Return the seeds of the adapters' dropout, as if nothing had been drawn before."""
    config = run.config
    if config.lora is None or not config.lora.dropout:
        return None
    mine = range(run.world.rank, config.batch.num_microbatches, run.world.size)
    return [derive_seed("lora dropout", config.seed, step, index) for index in mine]


def _validate(run: Run, step: int) -> ValidMetrics:
    return validate(
        run.engine,
        run.valid,
        run.world,
        step=step,
        sequences=run.config.validate.sequences,
        chunk_tokens=run.config.loss_chunk_tokens,
    )


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _batches(run: Run) -> Iterator[list[Batch]]:
    """Yield this rank's microbatches of each step that is left."""
    mine = range(run.world.rank, run.config.batch.num_microbatches, run.world.size)
    for step in range(run.first_step, run.config.steps):
        yield [run.train.microbatch(data_step(run.spikes, step), index) for index in mine]


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
