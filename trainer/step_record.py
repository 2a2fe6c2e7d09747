"""What is remembered of a finished step: its metrics, and whether it was a spike."""

import torch

from models.flops import flop_fraction
from models.plan import LayerPlan, Rows
from models.training_cost import training_flops_of_plan
from trainer.build import Run
from trainer.device_peaks import device_peak, peak_memory
from trainer.layer_dropout import drop_probabilities
from trainer.metrics import SpikeMetrics, StepMetrics
from trainer.schedule import learning_rate
from trainer.spikes import SpikesConfig, SpikeState, data_step, leave_out, remember
from trainer.step import StepResult


def settle(
    config: SpikesConfig | None, state: SpikeState, step: int, result: StepResult
) -> tuple[SpikeState, SpikeMetrics | None]:
    """Return what the run remembers after a step (from 0), and the spike if it was one.

    Raises:
        RuntimeError: if the spike is one that stops the run.
    """
    if config is None:
        return state, None
    if result.left_out is None:
        return remember(config, state, result.loss_per_exit, result.grad_norm), None
    after = leave_out(config, state, step, result.left_out)
    return after, SpikeMetrics(
        step=step + 1,
        policy=config.policy,
        reason=result.left_out,
        spike_step=step + 1,
        data_step=data_step(state, step),
        loss=result.loss,
        grad_norm=result.grad_norm,
        left_out=len(after.left_out),
    )


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
    flops = config.batch.num_microbatches * training_flops_of_plan(
        plan,
        model,
        run.parts,
        rows=rows,
        seq_len=config.data.seq_len,
        num_exits=len(weights),
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
