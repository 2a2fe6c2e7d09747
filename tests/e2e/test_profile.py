import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.runs import curve, train, write_config
from trainer.__main__ import main

pytestmark = pytest.mark.e2e

PLAIN = {"checkpoint": {"every": 3, "asynchronous": True}, "steps": 7}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    train([str(write_config(folder, profile=True, **PLAIN))])
    return folder / "run"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_trace_of_a_rank_shows_what_a_step_does(profiled: Path, rank: int) -> None:
    with gzip.open(profiled / "profile" / f"rank{rank}.pt.trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    named: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "user_annotation":
            named[event["name"]] += event["dur"]
    layers = {f"layer {layer}" for layer in range(4)}
    wanted = {"data", "plan", "forward", "backward", "reduction", "optimizer", "checkpoint"}
    wanted |= layers | {f"backward {layer}" for layer in layers} | {"loss exit 4"}
    assert wanted <= named.keys()
    assert all(named[name] > 0 for name in wanted)
    assert named["loss exit 2"] + named["loss exit 3"] > 0  # the curriculum rotates
    assert named["checkpoint copy"] > 0  # of the save after step 3


def test_the_table_of_a_run_names_layers_and_exits(profiled: Path) -> None:
    table = (profiled / "profile" / "rank0.txt").read_text()
    assert "  backward layer 0\n" in table
    assert "  loss exit 4\n" in table


def test_a_run_that_is_too_short_to_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="traces steps up to the 6th, but steps is 5"):
        main([str(write_config(tmp_path)), "profile=true", "steps=5", "--check"])


def test_a_profiled_run_trains_as_one_that_is_not(tmp_path: Path, profiled: Path) -> None:
    train([str(write_config(tmp_path, **PLAIN))])
    assert curve(tmp_path / "run") == curve(profiled)
