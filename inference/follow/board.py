"""What was found of a checkpoint as charts and texts; tags are listed in docs/tensorboard.md.

The full model is the run `evaluation` beside that of the training, an exit e the run
`evaluation/exit_e`: TensorBoard colours lines by run.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

RUN_NAME = "evaluation"
FIGURES = ("acceptance", "speedup", "expected_speedup", "tokens_per_second")
TEXTS = {"prompts": "prompt", "texts": "text", "drafted_texts": "drafted_text"}


class EvaluationBoard:
    """Writes event files; when a call returns all of it is on disk."""

    def __init__(self, folder: Path, *, after: int) -> None:
        """Keep where to write; each exit's file is opened with its first number.

        Args:
            folder: the run's `tensorboard/`.
            after: what an earlier process wrote for later steps than this is hidden.
        """
        self._folder, self._purge = folder / RUN_NAME, after + 1
        self._writers: dict[int, SummaryWriter] = {}

    def add(self, step: int, found: Mapping[str, Any], *, depth: int) -> None:
        """Write what `evaluate_checkpoint` found of the checkpoint after `step` steps.

        Args:
            step: of the checkpoint.
            found: its figures and texts.
            depth: L.
        """
        for name, values in found["exits"].items():
            writer = self._writer(int(name), depth)
            for tag, number in _numbers(values):
                writer.add_scalar(tag, number, step)
            for kind, tag in TEXTS.items():
                for index, text in enumerate(values.get(kind, ()), start=1):
                    writer.add_text(f"samples/{tag}_{index}", _block(text), step)
            writer.flush()

    def _writer(self, exit_layer: int, depth: int) -> SummaryWriter:
        if exit_layer not in self._writers:
            own = "" if exit_layer == depth else f"exit_{exit_layer:02d}"
            folder = str(self._folder / own)
            self._writers[exit_layer] = SummaryWriter(folder, purge_step=self._purge)
        return self._writers[exit_layer]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers.values():
            writer.close()


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in FIGURES:
        if values.get(name) is not None:
            yield f"measured/{name}", values[name]
    for task, metrics in values.get("tasks", {}).items():
        for metric, value in metrics.items():
            if "_stderr" not in metric:
                yield f"tasks/{task}/{metric.replace(',', '/')}", value


def _block(text: str) -> str:
    """Return the text as Markdown that shows it as it is: indented, so that no fence can end it."""
    lines: Sequence[str] = text.splitlines() or [""]
    return "\n".join(f"    {line}" for line in lines)
