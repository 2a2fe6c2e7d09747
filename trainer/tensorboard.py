"""TensorBoard: the numbers of `metrics.jsonl` as charts; tags are listed in docs/tensorboard.md.

TensorBoard colours lines by run, so each exit is a run of its own: `exit_01` and so on beside the
event file. The last exit is the real output and lives in the main run.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from configs.load import to_yaml
from trainer.acceptance import SHOWN_DRAFTS
from trainer.heat_map import StepHistory, heat_map
from trainer.metrics import SpikeMetrics, StepMetrics, ValidMetrics


def _chart(*tags: str) -> list[Any]:
    """Return a chart of the tags that match these regular expressions."""
    return ["Multiline", [f"{tag}$" for tag in tags]]


LAYOUT = {
    "Loss": {
        "Loss per exit, train and valid": _chart("exits/loss_(train|valid)"),
        "Minimised loss, and valid loss of the last exit": _chart("loss/(train|valid)"),
        "Perplexity per exit, valid": _chart("exits/perplexity_valid"),
    },
    "Exits": {
        "Agreement with the last layer, valid": _chart("exits/agreement_valid"),
        "Agreement with the last layer, train": _chart("exits/agreement_train"),
        "Acceptance of drafts, valid": _chart("exits/acceptance_valid"),
        "Estimated speedup of drafting, valid": _chart("exits/speedup_valid"),
        "Weight of each exit, 0 when it is off": _chart("exits/weight"),
        "Number of active exits": _chart("exits/active_count"),
    },
    "Layer dropout": {
        "Drop probability per layer": _chart(r"drop_probability/layer_\d+"),
        "Measured drop rate per layer": _chart(r"drop_rate/layer_\d+"),
        "Mean over layers: probability and rate": _chart("drop_(probability|rate)/mean"),
    },
    "Compute": {
        "FLOPs and step time, shares of a full step": _chart(
            "compute/flop_fraction", "compute/step_time_fraction"
        ),
        "Step time, seconds": _chart("compute/step_seconds"),
        "Tokens per second": _chart("compute/tokens_per_second"),
        "Model FLOP utilisation": _chart("compute/mfu"),
        "Peak memory, GiB": _chart("compute/memory_gib"),
    },
    "Optimiser": {
        "Gradient norm before clipping": _chart("optim/grad_norm"),
        "Learning rate": _chart("optim/learning_rate"),
    },
}
"""The Custom Scalars page: category -> chart -> tags."""

HPARAM_METRICS = (
    "loss/train",
    "loss/valid",
    "perplexity/valid",
    "compute/flop_fraction",
    "compute/tokens_per_second",
)
"""Columns of the HParams table: they show the last value of these tags."""

_REFERENCE_STEPS = 20


class TensorBoardWriter:
    """Writes one run. When a call returns it is all on disk, so a kill loses nothing."""

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        *,
        num_layers: int,
        resume_step: int = 0,
        past: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Open event files and write what is known before the first step.

        Args:
            folder: the run's `tensorboard/`.
            config: the root config dataclass, for the text page and HParams.
            num_layers: L.
            resume_step: optimiser steps that are done already; what an earlier process wrote for
                later steps is hidden.
            past: the lines of `metrics.jsonl` up to there, for what looks back.
        """
        self._num_layers = num_layers
        self._active, self._dropped = StepHistory(num_layers), StepHistory(num_layers)
        self._full_step_seconds: list[float] = []
        for line in past:
            if line["kind"] == "train":
                self._remember(line)
        purge = resume_step + 1
        self._main = SummaryWriter(str(folder), purge_step=purge)
        self._exits = {
            e: SummaryWriter(str(Path(folder) / f"exit_{e:02d}"), purge_step=purge)
            for e in range(1, num_layers)
        } | {num_layers: self._main}
        self._write_constants(config)

    def _write_constants(self, config: Any) -> None:
        self._main.add_custom_scalars(LAYOUT)
        self._main.add_text("config", f"```yaml\n{to_yaml(config)}```")
        experiment, start, self._end = hparams(  # type: ignore[no-untyped-call]
            flatten(dataclasses.asdict(config)), dict.fromkeys(HPARAM_METRICS, 0.0)
        )
        # Not add_hparams: it would put them into a run of its own, away from the metrics.
        self._file = self._main._get_file_writer()  # type: ignore[no-untyped-call]
        self._file.add_summary(experiment, 0)
        self._file.add_summary(start, 0)
        self._flush()

    def _remember(self, line: Mapping[str, Any]) -> None:
        """Keep what the pictures and the relative step time need of a training step."""
        active = set(line["active_exits"])
        exits = range(1, self._num_layers + 1)
        self._active.add(line["step"], [float(e in active) for e in exits])
        self._dropped.add(line["step"], line["drop_rate"])
        # A step may drop every layer; it says nothing about a full one.
        if line["flop_fraction"] and len(self._full_step_seconds) < _REFERENCE_STEPS:
            self._full_step_seconds.append(line["step_seconds"] / line["flop_fraction"])

    def train(self, m: StepMetrics) -> None:
        """Write one training step."""
        self._remember(dataclasses.asdict(m))
        numbers = {
            "loss/train": m.loss,
            "exits/active_count": len(m.active_exits),
            "drop_probability/mean": statistics.fmean(m.drop_probability),
            "drop_rate/mean": statistics.fmean(m.drop_rate),
            "compute/flop_fraction": m.flop_fraction,
            "compute/step_seconds": m.step_seconds,
            "compute/tokens_per_second": m.tokens_per_second,
            "compute/tokens_seen": m.tokens_seen,
            "compute/memory_gib": m.memory_bytes / 2**30,
            "optim/grad_norm": m.grad_norm,
            "optim/learning_rate": m.learning_rate,
        }
        if self._full_step_seconds:
            full_step = statistics.median(self._full_step_seconds)
            numbers["compute/step_time_fraction"] = m.step_seconds / full_step
        if m.mfu is not None:
            numbers["compute/mfu"] = m.mfu
        for subject, values in (
            ("drop_probability", m.drop_probability),
            ("drop_rate", m.drop_rate),
        ):
            numbers |= {f"{subject}/layer_{i:02d}": value for i, value in enumerate(values)}
        self._scalars(numbers, m.step)
        self._per_exit("exits/loss_train", m.loss_per_exit, m.step)
        self._agreement("train", m)
        weights = {e: m.exit_weights.get(e, 0.0) for e in self._exits}
        self._per_exit("exits/weight", weights, m.step)
        self._flush()

    def valid(self, m: ValidMetrics) -> None:
        """Write one validation, and pictures of the training so far."""
        last = self._num_layers
        self._scalars(
            {"loss/valid": m.loss_per_exit[last], "perplexity/valid": m.perplexity_per_exit[last]},
            m.step,
        )
        self._per_exit("exits/loss_valid", m.loss_per_exit, m.step)
        self._per_exit("exits/perplexity_valid", m.perplexity_per_exit, m.step)
        self._agreement("valid", m)
        acceptance = {e: shares[SHOWN_DRAFTS - 1] for e, shares in m.acceptance_per_exit.items()}
        self._per_exit("exits/acceptance_valid", acceptance, m.step)
        self._per_exit("exits/speedup_valid", m.speedup_per_exit, m.step)
        self._per_exit("exits/draft_length_valid", m.draft_length_per_exit, m.step)
        if self._active.steps[1]:
            self._pictures(m.step)
        self._flush()

    def spike(self, m: SpikeMetrics) -> None:
        """Write down that the update of a step was left out, and why."""
        self._scalars({"optim/left_out": m.left_out}, m.step)
        self._main.add_text("spikes", f"step {m.spike_step}, {m.policy}: {m.reason}", m.step)
        self._flush()

    def _pictures(self, step: int) -> None:
        active = heat_map(
            self._active, first=1, title="share of steps with the exit on", ylabel="exit", top=1.0
        )
        dropped = heat_map(
            self._dropped, first=0, title="share of rows dropped, measured", ylabel="layer"
        )
        self._main.add_image("exits/active", active, step, dataformats="HWC")
        self._main.add_image("drop_rate/layers", dropped, step, dataformats="HWC")

    def _scalars(self, numbers: Mapping[str, float], step: int) -> None:
        for tag, value in numbers.items():
            self._main.add_scalar(tag, value, step)

    def _per_exit(self, tag: str, values: Mapping[int, float], step: int) -> None:
        for e, value in values.items():
            self._exits[e].add_scalar(tag, value, step)

    def _agreement(self, kind: str, m: StepMetrics | ValidMetrics) -> None:
        shares = m.agreement_per_exit
        earlier = {e: share for e, share in shares.items() if e != self._num_layers}  # L: always 1
        self._per_exit(f"exits/agreement_{kind}", earlier, m.step)

    def _flush(self) -> None:
        for writer in self._exits.values():
            writer.flush()

    def close(self, *, finished: bool = True) -> None:
        """Close the event files.

        Args:
            finished: the run reached its last step, so HParams shows it as done.
        """
        if finished:
            self._file.add_summary(self._end, 0)
        for writer in self._exits.values():
            writer.close()


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Return a nested config as dotted keys; what is not a number or a string becomes JSON."""
    flat: dict[str, int | float | str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, bool) or not isinstance(value, int | float | str):
            flat[prefix + key] = json.dumps(value, default=str)
        else:
            flat[prefix + key] = value
    return flat
