import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainer.metrics import MetricsWriter, SpikeMetrics, StepMetrics, ValidMetrics, read_metrics


def step_metrics(step: int, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": step,
        "loss": 4.0 / step,
        "loss_per_exit": {2: 5.0, 4: 3.5},
        "exit_weights": {2: 0.25, 4: 0.75},
        "agreement_per_exit": {2: 0.5, 4: 1.0},
        "drop_probability": [0.0, 0.1, 0.2, 0.3],
        "drop_rate": [0.0, 0.0, 0.25, 0.5],
        "active_exits": [2, 4],
        "flop_fraction": 0.8,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
        "step_seconds": 0.5,
        "tokens_per_second": 2048.0,
        "tokens_seen": 1024 * step,
        "mfu": None,
        "memory_bytes": 2**30,
    }
    return StepMetrics(**(values | changes))


def valid_metrics(step: int, **changes: Any) -> ValidMetrics:
    values: dict[str, Any] = {
        "step": step,
        "loss_per_exit": {1: 6.0, 2: 5.0, 3: 4.5, 4: 4.0},
        "perplexity_per_exit": {e: math.exp(x) for e, x in {1: 6, 2: 5, 3: 4.5, 4: 4}.items()},
        "agreement_per_exit": {1: 0.2, 2: 0.4, 3: 0.6, 4: 1.0},
        "acceptance_per_exit": {e: [0.9 / k for k in range(1, 13)] for e in (1, 2, 3)},
        "draft_length_per_exit": {1: 1, 2: 4, 3: 2},
        "speedup_per_exit": {1: 0.8, 2: 1.25, 3: 1.1},
        "tokens": 4096,
        "seconds": 1.0,
    }
    return ValidMetrics(**(values | changes))


def spike_metrics(step: int, **changes: Any) -> SpikeMetrics:
    values: dict[str, Any] = {
        "step": step,
        "policy": "skip",
        "reason": "the loss at exit 4 is nan",
        "spike_step": step,
        "data_step": step - 1,
        "loss": math.nan,
        "grad_norm": math.nan,
        "left_out": 1,
    }
    return SpikeMetrics(**(values | changes))


def write(folder: Path, steps: range, resume_step: int | None = None) -> Path:
    writer = MetricsWriter(folder, resume_step=resume_step)
    for step in steps:
        writer.train(step_metrics(step))
        if step % 2 == 0:
            writer.valid(valid_metrics(step))
    writer.close()
    return writer.path


def test_a_line_comes_back_as_it_was_written(tmp_path: Path) -> None:
    train, valid = read_metrics(write(tmp_path, range(2, 3)))
    assert train["kind"] == "train"
    assert valid["kind"] == "valid"
    assert train["loss_per_exit"] == {2: 5.0, 4: 3.5}
    assert valid["agreement_per_exit"] == {1: 0.2, 2: 0.4, 3: 0.6, 4: 1.0}
    assert valid["acceptance_per_exit"][3][:2] == [0.9, 0.45]
    assert valid["speedup_per_exit"] == {1: 0.8, 2: 1.25, 3: 1.1}


def test_a_training_line_has_what_the_readme_promises(tmp_path: Path) -> None:
    line = json.loads(write(tmp_path, range(1, 2)).read_text())
    promised = {"step", "loss", "loss_per_exit", "flop_fraction", "step_seconds"}
    assert promised | {"tokens_per_second"} <= line.keys()


def test_lines_are_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.train(step_metrics(1))
    assert [line["step"] for line in read_metrics(writer.path)] == [1]
    writer.close()


def test_a_killed_and_resumed_run_leaves_the_file_of_the_unbroken_run(tmp_path: Path) -> None:
    unbroken = write(tmp_path / "a", range(1, 9))
    killed = write(tmp_path / "b", range(1, 7))
    with killed.open("a") as file:
        file.write('{"kind": "train", "step": 7, "lo')
    write(tmp_path / "b", range(5, 9), resume_step=4)
    assert killed.read_text() == unbroken.read_text()


def test_resuming_at_zero_starts_the_curve_again(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 4))
    MetricsWriter(tmp_path, resume_step=0).close()
    assert read_metrics(path) == []


def test_resuming_leaves_no_partial_file_behind(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 4))
    MetricsWriter(tmp_path, resume_step=2).close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_fresh_run_does_not_write_into_the_file_of_another(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 4))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds the metrics of another run"):
        MetricsWriter(tmp_path)
    assert path.read_bytes() == before


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 2))
    with path.open("a") as file:
        file.write('{"kind": "tr')
    assert [line["step"] for line in read_metrics(path)] == [1]


@pytest.mark.parametrize(
    "line", [b'{"kind": "train", "step": ,}', b"\xff", b"3", b'{"kind": "train"}', b"[" * 50_000]
)
def test_a_damaged_line_is_named_and_the_file_kept(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path, range(1, 4))
    damaged = b"\n".join([line, *path.read_bytes().split(b"\n")[1:]])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        MetricsWriter(tmp_path, resume_step=3)
    assert path.read_bytes() == damaged


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.valid(valid_metrics(1, perplexity_per_exit={4: math.inf}))
    writer.close()
    assert "Infinity" not in writer.path.read_text()
    assert read_metrics(writer.path)[0]["perplexity_per_exit"] == {4: None}


def test_a_spike_has_a_line_of_its_own_that_resuming_before_it_removes(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.spike(spike_metrics(5))
    (line,) = read_metrics(writer.path)
    assert (line["kind"], line["step"], line["loss"]) == ("spike", 5, None)
    MetricsWriter(tmp_path, resume_step=5)
    assert len(read_metrics(writer.path)) == 1
    MetricsWriter(tmp_path, resume_step=4)
    assert read_metrics(writer.path) == []
