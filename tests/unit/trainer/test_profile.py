import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.ranges import named
from trainer.profile import ACTIVE, STEPS, WAIT, WARMUP, each_named, on_own_track, profiled


def run(folder: Path, steps: int, *, enabled: bool = True) -> None:
    def batches() -> Iterator[int]:
        yield from range(steps)

    with profiled(folder, 3, enabled=enabled) as end_step:
        for _ in each_named("data", batches()):
            with named("plan"):
                torch.ones(100, 100) @ torch.ones(100, 100)
            end_step()


def test_the_table_sums_up_the_traced_steps(tmp_path: Path) -> None:
    run(tmp_path, STEPS + 1)
    lines = (tmp_path / "profile" / "rank3.txt").read_text().splitlines()
    rows = {line.split("  ")[-1]: line.split() for line in lines}
    assert rows["step"][0] == rows["data"][0] == rows["plan"][0] == "1.0"  # times a step
    assert rows["step"][2] == "100.0%"
    assert 0 < float(rows["plan"][1]) < float(rows["step"][1])
    assert "aten::mm" in rows


def test_the_trace_holds_the_steps_after_the_warm_up(tmp_path: Path) -> None:
    run(tmp_path, STEPS + 3)
    with gzip.open(tmp_path / "profile" / "rank3.pt.trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    steps = [event["name"] for event in events if event["name"].startswith("ProfilerStep#")]
    assert steps == [f"ProfilerStep#{WAIT + WARMUP + i}" for i in range(ACTIVE)]
    assert {p.name for p in (tmp_path / "profile").iterdir()} == {
        "rank3.pt.trace.json.gz",
        "rank3.txt",
    }


def test_a_run_that_ends_early_writes_what_it_has(tmp_path: Path) -> None:
    run(tmp_path, WAIT + WARMUP + 1)
    assert "step" in (tmp_path / "profile" / "rank3.txt").read_text()


def test_nothing_is_written_without_profile(tmp_path: Path) -> None:
    run(tmp_path, STEPS, enabled=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_what_the_data_raises_is_raised_here(error: type[Exception]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise error("no more")

    items = each_named("data", broken())
    assert next(items) == 1
    with pytest.raises(error):
        next(items)


def test_backward_ranges_of_layers_get_a_named_track() -> None:
    layer = {"name": "backward layer 1", "cat": "user_annotation", "pid": 7, "tid": 8}
    other = {"name": "backward", "cat": "user_annotation", "pid": 7, "tid": 8}
    events = [layer, other]
    on_own_track(events)
    assert layer["tid"] == "8 backward"
    assert other["tid"] == 8
    assert events[2]["tid"] == "8 backward"
    assert events[2]["args"] == {"name": "backward pass by layer"}
