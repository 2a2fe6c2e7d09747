"""Everything that watches a run, on rank 0: metrics.jsonl, TensorBoard, the console."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.build import Run
from trainer.metrics import FILE_NAME, MetricsWriter, StepMetrics, ValidMetrics, read_metrics
from trainer.progress import Progress
from trainer.tensorboard import TensorBoardWriter


class Observers:
    """Hands metrics to all writers; on ranks other than 0 it does nothing."""

    def __init__(self, run: Run) -> None:
        self.finished = False
        self._writers: list[MetricsWriter | TensorBoardWriter | Progress] = []
        self._close: list[Callable[[], None]] = []
        self._progress: Progress | None = None
        if not run.world.is_first:
            return
        folder, config = Path(run.config.run_folder), run.config
        metrics = MetricsWriter(folder, resume_step=run.first_step)
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
        """Record a training step."""
        for writer in self._writers:
            writer.train(metrics)

    def valid(self, metrics: ValidMetrics) -> None:
        """Record a validation."""
        for writer in self._writers:
            writer.valid(metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for close in self._close:
            close()
