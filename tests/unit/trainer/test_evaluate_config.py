from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load
from inference.follow.config import FollowConfig
from models.hf import save_pretrained
from parallel.evaluated import EvaluationLog
from tests.e2e.runs import write_config
from tests.tiny import tiny_config, tiny_llama
from trainer.check import check_report
from trainer.config import PretrainConfig
from trainer.evaluate_config import EvaluateConfig
from trainer.evaluation import PASSED_ON, follow_arguments, spared_steps

SECTION: dict[str, Any] = {"every": 6, "exits": [2, 4], "prompts": "prompts.txt"}


def config_of(folder: Path, **changes: Any) -> PretrainConfig:
    return load(PretrainConfig, write_config(folder, evaluate=SECTION | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "evaluate.every must be at least 1, got 0"),
        ({"every": 4}, "evaluate.every 4 must be a multiple of checkpoint.every 3"),
        ({"exits": []}, r"evaluate.exits \[\] must name exits"),
        ({"exits": [3, 2]}, r"evaluate.exits \[3, 2\] must name exits from 1 on, ascending"),
        ({"exits": [0, 2]}, r"evaluate.exits \[0, 2\] must name exits from 1 on"),
        ({"exits": [2, 5]}, r"evaluate.exits \[2, 5\]: a model of 4 layers has exits 1..4"),
        ({"prompts": None}, "evaluate has neither prompts nor tasks"),
        ({"prompts": None, "tasks": " , "}, "evaluate has neither prompts nor tasks"),
        ({"limit": 3}, "evaluate.limit 3 would be ignored without evaluate.tasks"),
        (
            {"prompts": None, "tasks": "x", "num_samples": 2},
            "evaluate.num_samples 2 would be ignored without evaluate.prompts",
        ),
        ({"num_speculations": 13}, "evaluate.num_speculations must be in 1..12, got 13"),
        ({"keep": -1}, "evaluate.keep must be at least 0, got -1"),
        ({"threads": 0}, "evaluate.threads must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_the_exits_have_to_be_those_of_the_model_to_go_on_from(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=3)
    weights = [(name, p.detach()) for name, p in tiny_llama(config).named_parameters()]
    save_pretrained(weights, config, tmp_path / "model", dtype=torch.float32)
    path = write_config(tmp_path, model=None, init_from=str(tmp_path / "model"), evaluate=SECTION)
    with pytest.raises(ValueError, match="a model of 3 layers has exits"):
        check_report(load(PretrainConfig, path))


def test_a_file_that_is_missing_is_named_before_the_run_begins(tmp_path: Path) -> None:
    for prompts in ("no/prompts", "prompts.jsonl", "cnn_dm:articles"):
        section = EvaluateConfig(every=1, exits=(1,), prompts=prompts)
        with pytest.raises(ValueError, match=f"evaluate.prompts {prompts}: there is no such file"):
            section.check_here()
    EvaluateConfig(every=1, exits=(1,), prompts="cnn_dm").check_here()  # from the hub
    (tmp_path / "p.txt").write_text("a\n")
    EvaluateConfig(every=1, exits=(1,), prompts=str(tmp_path / "p.txt")).check_here()


def test_tasks_without_lm_eval_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"evaluate.tasks gsm8k needs lm-eval: install it, pip"):
        EvaluateConfig(every=1, exits=(1,), tasks="gsm8k").check_here()


def test_what_is_passed_on_is_what_follow_understands() -> None:
    section = EvaluateConfig(
        every=50,
        exits=(2, 4),
        prompts="a file.txt",
        num_samples=3,
        max_new_tokens=9,
        num_speculations=5,
        tasks="a,b",
        task_folder="some folder",
        limit=7,
        dtype="bfloat16",
        device="auto",
    )
    followed = load(FollowConfig, None, follow_arguments(section, until=120))
    assert followed.until == 120
    assert [getattr(followed, name) for name in PASSED_ON] == [
        getattr(section, name) for name in PASSED_ON
    ]
    least = EvaluateConfig(every=1, exits=(1,), prompts="x")
    assert load(FollowConfig, None, follow_arguments(least, until=2)).max_new_tokens == 64


def test_the_newest_that_wait_are_spared(tmp_path: Path) -> None:
    config = config_of(tmp_path, keep=2)
    run = Path(config.run_folder)
    run.mkdir()
    assert spared_steps(config, [3, 6, 9]) == [6]
    assert spared_steps(config, [6, 12, 18, 24]) == [18, 24]
    with EvaluationLog(run) as log:
        log.add(18, {})
    assert spared_steps(config, [6, 12, 18, 24]) == [12, 24]
    assert spared_steps(config_of(tmp_path, keep=0), [6]) == []
    assert spared_steps(load(PretrainConfig, write_config(tmp_path)), [6]) == []


def test_check_says_what_will_be_evaluated(tmp_path: Path) -> None:
    text = check_report(config_of(tmp_path))
    assert "evaluations: 2, every 6 steps and at the end, at exits 2, 4, on device cpu" in text
    assert "up to 5 checkpoints on the disk" in text
    assert "evaluations:" not in check_report(load(PretrainConfig, write_config(tmp_path)))
