import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from benchmarks.picture import save_picture
from benchmarks.report import Report, hardware, table, versions, write_report


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "perplexity_per_exit": {1: 200.0, 2: 90.0, 3: 40.0, 4: 20.5},
        "acceptance_rate": 0.8125,
        "tokens_per_second": {"autoregressive": 100.0, "self_speculative": 190.0},
        "speedup": 1.9,
        "same_tokens": True,
        "seconds_total": 400.4,
        "seconds_per_stage": {"environment": 90.0, "training": 250.0},
        "resumed_from_step": 0,
        "model": {"num_hidden_layers": 4},
        "num_parameters": 10_300_000,
        "steps": 600,
        "tokens_seen": 4_900_000,
        "exit_layer": 2,
        "num_speculations": 6,
        "num_prompts": 16,
        "max_new_tokens": 128,
        "example": {"prompt": "def ", "continuation": "main():"},
        "hardware": hardware(),
        "versions": versions(),
    }
    return Report(**(values | changes))


METRICS = [
    {"kind": "train", "step": step, "loss_per_exit": {1 + step % 3: 5.0, 4: 4.0}}
    for step in range(1, 20)
] + [
    {"kind": "valid", "step": step, "loss_per_exit": dict.fromkeys(range(1, 5), 4.5)}
    for step in (10, 20)
]


def test_the_file_has_the_figures_under_their_promised_names(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["perplexity_per_exit"]["4"] == 20.5
    assert content["acceptance_rate"] == 0.8125
    assert content["tokens_per_second"] == {"autoregressive": 100.0, "self_speculative": 190.0}
    assert content["speedup"] == 1.9
    assert content["seconds_total"] == 400.4
    assert content["versions"]["torch"].startswith("2.")


def test_the_table_has_a_row_for_each_exit() -> None:
    rows = [line.split() for line in table(report()).splitlines()]
    values = {int(row[0]): float(row[1]) for row in rows if len(row) > 2 and set(row[2]) == {"#"}}
    assert values == {1: 200.0, 2: 90.0, 3: 40.0, 4: 20.5}


def test_the_table_compares_both_ways_of_decoding() -> None:
    rows = [line.split() for line in table(report()).splitlines()]
    assert ["autoregressive", "100.0", "10.00"] in rows
    assert ["self-speculative", "190.0", "5.26", "0.812", "1.90x"] in rows


def test_tokens_that_differ_are_not_passed_over() -> None:
    assert "both gave the same tokens" in table(report())
    assert "THE TOKENS DIFFER" in table(report(same_tokens=False))


def test_a_resumed_quickstart_says_that_its_seconds_are_not_those_of_a_fresh_one() -> None:
    assert "earlier quickstart" not in table(report())
    assert "from step 300 of an earlier quickstart" in table(report(resumed_from_step=300))


def test_no_line_of_the_table_is_wider_than_a_console() -> None:
    assert max(map(len, table(report()).splitlines())) <= 100


@pytest.mark.parametrize("exits", [2, 4])
def test_the_picture_is_a_png_with_something_on_it(tmp_path: Path, exits: int) -> None:
    perplexity = {e: 100.0 / e for e in range(1, exits + 1)}
    lines = [
        line | {"loss_per_exit": {e: x for e, x in line["loss_per_exit"].items() if e <= exits}}
        for line in METRICS
    ]
    save_picture(report(perplexity_per_exit=perplexity), lines, tmp_path / "report.png")
    pixels = matplotlib.image.imread(tmp_path / "report.png")
    height, width = pixels.shape[:2]
    assert width > 2 * height
    for third in (pixels[:, : width // 2], pixels[:, width // 2 : 5 * width // 6]):
        assert third[..., :3].std() > 0.05
