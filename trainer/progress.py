"""The console of a run: a progress bar on a terminal, plain lines in a log file."""

import logging
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer.metrics import SpikeMetrics, StepMetrics, ValidMetrics

log = logging.getLogger(__name__)


class Progress:
    """Shows how far a run is. Silent on ranks that are not enabled.

    On a terminal one bar with loss, tokens/s and the time left; log lines are printed above it.
    Elsewhere one log line every `log_every` steps.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        log_every: int = 10,
        enabled: bool = True,
        terminal: bool | None = None,
    ) -> None:
        """Show a run of `total_steps`, of which `start_step` are done.

        Args:
            total_steps: optimiser steps of the whole run.
            start_step: steps that the resumed checkpoint has finished.
            log_every: steps between plain lines.
            enabled: False on every rank but one.
            terminal: bar or lines; default: bar when stderr is a terminal.
        """
        self._total, self._start, self._log_every = total_steps, start_step, log_every
        self._enabled = enabled
        self._began = time.perf_counter()
        self._open = ExitStack()
        self._bar: tqdm[None] | None = None
        if enabled and (sys.stderr.isatty() if terminal is None else terminal):
            self._open.enter_context(logging_redirect_tqdm())
            self._bar = self._open.enter_context(
                tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)
            )

    def advance(self, step: int) -> None:
        """Move the bar to `step` finished steps; for steps whose metrics are not collected."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def train(self, metrics: StepMetrics) -> None:
        """Show a training step."""
        if self._bar is not None:
            speed = _short(metrics.tokens_per_second)
            self._bar.set_postfix_str(f"loss {metrics.loss:.3f}, {speed} tok/s", refresh=False)
            self.advance(metrics.step)
        elif self._enabled and (
            metrics.step % self._log_every == 0 or metrics.step in (self._start + 1, self._total)
        ):
            log.info("%s", self._line(metrics))

    def valid(self, metrics: ValidMetrics) -> None:
        """Show a validation: the perplexity at every exit, and which of them would draft best."""
        if self._enabled:
            exits = " ".join(f"{e}:{p:.4g}" for e, p in sorted(metrics.perplexity_per_exit.items()))
            best = _best_exit(metrics)
            log.info("valid at step %d: perplexity by exit %s%s", metrics.step, exits, best)

    def spike(self, metrics: SpikeMetrics) -> None:
        """Show that the update of a step was left out."""
        if not self._enabled:
            return
        done = "skipped its update"
        if metrics.policy == "rollback":
            done = f"went back to step {metrics.step - 1}, on to the data after it"
        log.warning("spike at step %d: %s; %s", metrics.spike_step, metrics.reason, done)

    def _line(self, metrics: StepMetrics) -> str:
        elapsed = time.perf_counter() - self._began
        left = elapsed / (metrics.step - self._start) * (self._total - metrics.step)
        return (
            f"step {metrics.step}/{self._total}  loss {metrics.loss:.4f}  "
            f"lr {metrics.learning_rate:.2e}  {_short(metrics.tokens_per_second)} tok/s  "
            f"ETA {tqdm.format_interval(left)}"
        )

    def close(self) -> None:
        """Leave the bar as it stands, with the last step's numbers."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _best_exit(metrics: ValidMetrics) -> str:
    """Say in a clause what the exit with the largest estimated speedup would gain."""
    speedups = metrics.speedup_per_exit
    if not speedups:
        return ""
    e = max(speedups, key=lambda exit_layer: speedups[exit_layer])
    length = metrics.draft_length_per_exit[e]
    return f"; drafting {length} at exit {e} would be {speedups[e]:.2f}x as fast as plain decoding"


def _short(number: float) -> str:
    """Return three digits and a unit: 950, 12.3k, 1.20M."""
    return str(tqdm.format_sizeof(number)).strip()
