import json
from pathlib import Path

import pytest

from benchmarks.launched import last_step, untimed
from benchmarks.resources import Sample, growth


def test_the_last_step_is_that_of_the_last_whole_training_line(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == 0
    lines = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 400)]
    lines.append({"kind": "valid", "step": 399})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    metrics.write_text(text + '{"kind": "train", "step": 40')
    assert last_step(metrics) == 399


def test_curves_are_compared_without_what_depends_on_time() -> None:
    line = {"kind": "train", "step": 1, "loss": 2.0}
    assert untimed([line | {"step_seconds": 1.0, "memory_bytes": 5, "mfu": None}]) == [line]


def test_growth_is_a_slope_over_the_settled_steps_of_each_rank() -> None:
    samples = [
        Sample(rank, step, 100.0 + rank * step / 1000 + (500.0 if step < 200 else 0.0), 20 + rank)
        for step in range(0, 1001, 10)
        for rank in (0, 1)
    ]
    flat, growing = growth(samples)
    assert flat["megabytes_per_1000_steps"] == pytest.approx(0.0)
    assert growing["megabytes_per_1000_steps"] == pytest.approx(1.0)
    assert (flat["first_step"], flat["last_step"]) == (310, 950)
    assert flat["files"] == "20 to 20"
