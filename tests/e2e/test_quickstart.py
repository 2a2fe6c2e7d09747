import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.command import ROOT

SMALL = [
    "steps=4",
    "model.num_hidden_layers=4",
    "model.hidden_size=64",
    "model.num_attention_heads=2",
    "model.intermediate_size=128",
    "model.vocab_size=1024",
    "data.source.stdlib.max_megabytes=1.5",
    "data.tokenizer.sentencepiece.vocab_size=1024",
    "data.valid_fraction=0.4",
    "exit_loss.rotation=3",
    "schedule.warmup_steps=1",
    "validate.every=2",
    "validate.sequences=8",
]


def quickstart(folder: Path) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.quickstart", *SMALL),
            *(f"run_folder={folder / 'run'}", f"data.cache_folder={folder / 'data'}"),
        ],
        cwd=ROOT,
        env={"QUICKSTART_STARTED": str(time.time() - 60), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.e2e
def test_the_quickstart_leaves_a_report_and_can_be_run_twice(tmp_path: Path) -> None:
    first = quickstart(tmp_path)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["perplexity_per_exit"]) == ["1", "2", "3", "4"]
    assert set(report["tokens_per_second"]) == {"autoregressive", "self_speculative"}
    assert 0 <= report["acceptance_rate"] <= 1
    assert report["same_tokens"] is True
    assert report["resumed_from_step"] == 0
    assert report["seconds_per_stage"]["environment"] >= 60
    assert report["seconds_total"] >= sum(report["seconds_per_stage"].values()) - 1
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "$ OMP_NUM_THREADS=" in first
    assert "speedup" in first

    again = quickstart(tmp_path)
    assert "4 of 4 steps: nothing is left to train" in again
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["resumed_from_step"] == 4
    assert report["steps"] == 4
