import json
from pathlib import Path
from typing import Any

import pytest

from inference.card.read_run import read_run

COMMIT = "48009173bc79ea43468bb0c2402a30e6269dfc0d"


def train_line(step: int, seconds: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "step_seconds": seconds}


def valid_line(step: int, loss: float | None) -> dict[str, Any]:
    return {
        "kind": "valid",
        "step": step,
        "loss_per_exit": {"1": 2.0, "10": 1.0, "2": loss},
        "perplexity_per_exit": {"1": 7.4, "10": 2.7, "2": 4.5},
        "agreement_per_exit": {"1": 0.5, "10": 1.0},
        "tokens": 64,
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a run leaves beside its weights, at its 20th step of 30."""
    folder = tmp_path / "checkpoints" / "step_00000020"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("steps: 30\ninit_from: null\n")
    (folder / "state.json").write_text(
        json.dumps({"step": 20, "tokens_seen": 640, "world_size": 2})
    )
    lines = [
        train_line(10, 0.5),
        valid_line(10, 1.5),
        train_line(20, 0.25),
        {"kind": "spike", "step": 20},
        valid_line(20, 1.25),
        train_line(30, 9.0),
        valid_line(30, 0.1),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "tr')
    (tmp_path / "commit.txt").write_text(COMMIT + "\n")
    (tmp_path / "diff.patch").write_text("")
    (tmp_path / "versions.json").write_text('{"torch": "2.13.0"}')
    return folder


def test_a_checkpoint_is_told_from_what_is_not_younger(checkpoint: Path) -> None:
    found = read_run(checkpoint)
    assert found is not None
    assert (found.step, found.tokens, found.ranks) == (20, 640, 2)
    assert found.seconds == 10 * 0.5 + 10 * 0.25
    assert (found.commit, found.is_changed) == (COMMIT, False)
    assert found.versions == {"torch": "2.13.0"}
    assert found.validation is not None
    assert found.validation.step == 20
    assert [x.exit_layer for x in found.validation.exits] == [1, 2, 10]
    assert [x.loss for x in found.validation.exits] == [2.0, 1.25, 1.0]
    assert [x.agreement for x in found.validation.exits] == [0.5, None, 1.0]


def test_an_exit_without_a_finite_loss_is_left_out(checkpoint: Path) -> None:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    metrics.write_text(json.dumps(valid_line(15, None)) + "\n")
    found = read_run(checkpoint)
    assert found is not None
    assert found.validation is not None
    assert [x.exit_layer for x in found.validation.exits] == [1, 10]


def test_a_checkpoint_that_was_moved_has_no_metrics(checkpoint: Path, tmp_path: Path) -> None:
    found = read_run(checkpoint.rename(tmp_path / "moved"))
    assert found is not None
    assert found.step == 20
    assert (found.seconds, found.commit, found.validation) == (None, None, None)
    assert found.versions == {}


def test_a_run_without_git_has_no_commit(checkpoint: Path) -> None:
    (checkpoint.parent.parent / "commit.txt").write_text("not a git checkout\n")
    (checkpoint.parent.parent / "diff.patch").write_text("+ 1\n")
    (checkpoint.parent.parent / "versions.json").write_text("[")
    found = read_run(checkpoint)
    assert found is not None
    assert (found.commit, found.is_changed, found.versions) == (None, True, {})


@pytest.mark.parametrize("text", [None, "- a", "a: ["])
def test_a_checkpoint_without_a_readable_config_is_not_described(
    checkpoint: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint / "config.yaml").unlink()
    if text is not None:
        (checkpoint / "config.yaml").write_text(text)
    assert read_run(checkpoint) is None
    assert "the card will say nothing of how the model was trained" in caplog.text
