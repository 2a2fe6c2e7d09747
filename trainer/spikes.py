"""Loss spikes: when a step is one, what is done about it, and which data a step trains on.

Everything here is a pure function of losses and gradient norms that all ranks share, so all ranks
decide alike, and a resumed run decides as one that never stopped.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

SIGMAS_PER_DEVIATION = 1.4826
"""Makes the median absolute deviation of normal noise its standard deviation."""
LEAST_DEVIATION = 0.01
"""A deviation is at least this share of the median, or a very quiet run would spike all the time.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikesConfig:
    """What to do when the loss jumps up or is not finite. Without this section numbers that are not
    finite stop the run, and nothing else does."""

    policy: Literal["stop", "skip", "rollback"]
    """`stop` the run before the update; `skip` the update of this step; `rollback` to the newest
    checkpoint, and go on from there with the data that follows the spike."""
    loss_deviations: float | None = 10.0
    """How many running deviations the loss may be above its running median; absent: any number. The
    loss of the highest active exit counts: that of others comes and goes with the curriculum."""
    grad_norm_deviations: float | None = None
    """The same for the gradient norm before clipping."""
    window: int | None = None
    """Steps that running median and deviation look back on, spikes left out; absent: 100. Before
    that many only numbers that are not finite are spikes."""
    at_most: int | None = None
    """How many spikes may be skipped or rolled back in `within_steps` before the run stops after
    all; absent: 3."""
    within_steps: int | None = None
    """The steps that `at_most` counts in; absent: 1000."""

    def __post_init__(self) -> None:
        limits = [
            f"spikes.{name}"
            for name in ("loss_deviations", "grad_norm_deviations")
            if getattr(self, name) is not None
        ]
        for key in limits:
            if not getattr(self, key.removeprefix("spikes.")) > 0:
                raise ValueError(f"{key} must be above 0; 10 is usual, null turns it off")
        for name, least in (("window", 8), ("at_most", 1), ("within_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"spikes.{name} must be at least {least}, got {value}")
        if not limits and self.window is not None:
            raise ValueError(
                f"spikes.window {self.window} has no effect without spikes.loss_deviations or "
                "spikes.grad_norm_deviations: remove it or give one of them"
            )
        if self.policy == "stop":
            self._check_stop(limits)

    def _check_stop(self, limits: list[str]) -> None:
        if not limits:
            raise ValueError(
                "spikes.policy stop without spikes.loss_deviations and spikes.grad_norm_deviations "
                "does what happens without the section: remove it or give one of them"
            )
        for name in ("at_most", "within_steps"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"spikes.{name} {getattr(self, name)} has no effect with policy stop: remove "
                    "it or set spikes.policy to skip or rollback"
                )


@dataclass(frozen=True, slots=True)
class SpikeState:
    """What a run remembers of its steps; saved with every checkpoint."""

    losses: tuple[float, ...] = ()
    """Of the last ordinary steps, oldest first; at most a window of them."""
    grad_norms: tuple[float, ...] = ()
    """Of the same steps."""
    left_out: tuple[int, ...] = ()
    """Data steps, ascending, whose updates were skipped or rolled back."""
    jumps: tuple[tuple[int, int], ...] = ()
    """(step, count): from this optimiser step on the data is `count` steps further than it would
    be with the jumps before."""

    def as_json(self) -> dict[str, Any]:
        """Return the state as what JSON has words for."""
        return dataclasses.asdict(self)


def spike_state(values: Mapping[str, Any] | None) -> SpikeState:
    """Return the state that `as_json` gave; without values a fresh one."""
    if values is None:
        return SpikeState()
    plain = {name: tuple(values[name]) for name in ("losses", "grad_norms", "left_out")}
    return SpikeState(**plain, jumps=tuple((step, count) for step, count in values["jumps"]))


def data_step(state: SpikeState, step: int) -> int:
    """Return which step's data the optimiser step (from 0) trains on: itself, if nothing jumped."""
    return step + sum(count for at, count in state.jumps if at <= step)


def find_spike(
    config: SpikesConfig, state: SpikeState, losses: Mapping[int, float], grad_norm: float
) -> str | None:
    """Say in a clause what makes a step's finite numbers a spike, or None if they are ordinary.

    Args:
        config: the limits.
        state: what the steps before were like.
        losses: the step's mean loss at each exit.
        grad_norm: before clipping.
    """
    exit_ = max(losses)
    watched = (
        (f"the loss at exit {exit_}", losses[exit_], state.losses, config.loss_deviations),
        ("the gradient norm", grad_norm, state.grad_norms, config.grad_norm_deviations),
    )
    for name, value, past, most in watched:
        if most is None or len(past) < _window(config):
            continue
        middle = median(past)
        spread = SIGMAS_PER_DEVIATION * median(abs(x - middle) for x in past)
        deviation = max(spread, LEAST_DEVIATION * abs(middle))
        if value > middle + most * deviation:
            return (
                f"{name} is {value:.4g}, {(value - middle) / deviation:.1f} deviations above the "
                f"median {middle:.4g} of the last {len(past)} ordinary steps"
            )
    return None


def remember(
    config: SpikesConfig, state: SpikeState, losses: Mapping[int, float], grad_norm: float
) -> SpikeState:
    """Return the state after an ordinary step."""
    last = _window(config)
    return replace(
        state,
        losses=(*state.losses, losses[max(losses)])[-last:],
        grad_norms=(*state.grad_norms, grad_norm)[-last:],
    )


def leave_out(config: SpikesConfig, state: SpikeState, step: int, reason: str) -> SpikeState:
    """Return the state after the update of an optimiser step (from 0) was left out.

    Raises:
        RuntimeError: if the policy is to stop, or the budget is spent.
    """
    if config.policy == "stop":
        raise RuntimeError(
            f"step {step}: {reason}; stopped before the update. Lower optim.lr, look at the batch "
            "of this step, or set spikes.policy to skip or rollback"
        )
    at, most = data_step(state, step), config.at_most or 3
    within = config.within_steps or 1000
    recent = [before for before in state.left_out if before > at - within]
    if len(recent) >= most:
        raise RuntimeError(
            f"step {step}: {reason}; stopped before the update, for {len(recent)} updates were "
            f"left out within {within} steps already, as many as spikes.at_most allows. Lower "
            "optim.lr, or look at the data"
        )
    return replace(state, left_out=(*recent, at))


def jump(before: SpikeState, now: SpikeState, *, step: int, spike: int) -> SpikeState:
    """Return the state of a run that has gone back, and trains on the data after the spike.

    Args:
        before: as it was at the checkpoint: what it remembers of steps is true again.
        now: as it is: what was left out and jumped stays so.
        step: of the checkpoint; the step that is done next.
        spike: the optimiser step (from 0) that is given up.
    """
    count = data_step(now, spike) + 1 - data_step(now, step)
    return replace(
        now,
        losses=before.losses,
        grad_norms=before.grad_norms,
        jumps=(*now.jumps, (step, count)),
    )


def not_finite(losses: Mapping[int, float], grad_norm: float) -> str | None:
    """Say in a clause which of a step's numbers is not finite, or None if all are."""
    for e, loss in losses.items():
        if not math.isfinite(loss):
            return f"the loss at exit {e} is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm} although every loss is finite"
    return None


def _window(config: SpikesConfig) -> int:
    return config.window or 100
