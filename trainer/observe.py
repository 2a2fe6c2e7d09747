"""Everything that watches a run, on rank 0: metrics.jsonl, TensorBoard, the console."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.build import Run
from trainer.metrics import (
    FILE_NAME,
    MetricsWriter,
    SpikeMetrics,
    StepMetrics,
    ValidMetrics,
    read_metrics,
)
from trainer.progress import Progress
from trainer.tensorboard import TensorBoardWriter

logger = logging.getLogger(__name__)


class Observers:
    """Hands metrics to all writers; on ranks other than 0 it does nothing."""

    def __init__(self, run: Run) -> None:
        self.finished = False
        self._folder = Path(run.config.run_folder)
        self._writers: list[MetricsWriter | TensorBoardWriter | Progress] = []
        self._close: list[Callable[[], None]] = []
        self._progress: Progress | None = None
        if not run.world.is_first:
            return
        folder, config = self._folder, run.config
        metrics = MetricsWriter(folder, resume_step=run.first_step)
        if run.first_step:
            logger.info("going on after step %d of %d", run.first_step, config.steps)
        board = TensorBoardWriter(
            folder / "tensorboard",
            config,
            num_layers=run.model_config.num_hidden_layers,
            resume_step=run.first_step,
            past=read_metrics(folder / FILE_NAME),
        )
        progress = Progress(
            config.steps,
            start_step=run.first_step,
            log_every=config.log_every * 10,
        )
        self._progress = progress
        self._writers = [metrics, board, progress]
        self._close = [metrics.close, lambda: board.close(finished=self.finished), progress.close]

    def advance(self, step: int) -> None:
        """Show that a step is done whose metrics are not recorded."""
        if self._progress is not None:
            self._progress.advance(step)

    def train(self, metrics: StepMetrics) -> None:
        """Record a training step.

        Raises:
            RuntimeError: if the run folder cannot be written to; so do the other two.
        """
        with _writing(self._folder):
            for writer in self._writers:
                writer.train(metrics)

    def valid(self, metrics: ValidMetrics) -> None:
        """Record a validation."""
        with _writing(self._folder):
            for writer in self._writers:
                writer.valid(metrics)

    def spike(self, metrics: SpikeMetrics) -> None:
        """Record a step whose update was left out."""
        with _writing(self._folder):
            for writer in self._writers:
                writer.spike(metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for close in self._close:
            try:
                close()
            except OSError as unwritten:
                logger.warning("%s: its last lines are lost: %s", self._folder, unwritten)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"run_folder {folder} cannot be written to: {error}; make room there and start again: "
            "the run goes on from its newest checkpoint"
        ) from error
