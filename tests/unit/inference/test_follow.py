import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from configs.command import ROOT
from inference.__main__ import main
from inference.follow import command
from inference.follow.checkpoint import evaluate_checkpoint
from inference.follow.command import run
from inference.follow.config import FollowConfig
from inference.load import Loaded, load
from inference.opening import Placed
from inference.prompt_sets.prompt import Prompt
from tests.saved import save

PROMPTS = [Prompt(str(n), text) for n, text in enumerate(("def f", "class", "return x"))]

Opener = Callable[[str, Placed], Loaded]


@pytest.fixture
def opener(exported: Path) -> Opener:
    """What gives the same small model whatever checkpoint is asked for."""
    return lambda model, config: load(exported, dtype=torch.float32, device="cpu")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("steps: 30\nmodel: {num_hidden_layers: 4}\n")
    (tmp_path / "prompts.txt").write_text("def f\nclass\n")
    return folder


def keys(folder: Path, *more: str) -> list[str]:
    prompts = f"prompts={folder.parent / 'prompts.txt'}"
    return ["exits=[2,4]", prompts, "max_new_tokens=6", "num_speculations=3", *more]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_measured_at_every_exit_that_is_named(opener: Opener) -> None:
    config = FollowConfig(exits=(1, 3), prompts="x", max_new_tokens=8, num_speculations=3)
    found = evaluate_checkpoint(config, opener("", config), PROMPTS, None)
    assert list(found["exits"]) == ["1", "3", "4"]
    full, first = found["exits"]["4"], found["exits"]["1"]
    assert full["prompts"] == ["def f", "class", "return x"]
    assert len(full["texts"]) == len(first["texts"]) == len(first["drafted_texts"]) == 3
    assert first["same_output"]
    for drafted, text in zip(first["drafted_texts"], full["texts"], strict=True):
        assert drafted.replace("«", "").replace("»", "") == text  # the full model's own text
    assert 0 <= first["acceptance"] <= 1
    assert first["speedup"] > 0
    assert 0 < first["expected_speedup"] < 4
    assert "acceptance" not in full


def test_an_exit_or_prompt_that_does_not_fit_is_refused(opener: Opener) -> None:
    config = FollowConfig(exits=(5,), prompts="x")
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3"):
        evaluate_checkpoint(config, opener("", config), PROMPTS, None)


def test_each_checkpoint_is_evaluated_once_also_after_a_new_start(
    run_folder: Path, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 15, 20):
        save(run_folder / "checkpoints", step)
    run(str(run_folder), keys(run_folder, "every=10", "until=20"), opener)
    assert [line["step"] for line in lines(run_folder)] == [10, 20]
    before = (run_folder / "evaluations.jsonl").read_bytes()
    save(run_folder / "checkpoints", 30)
    run(str(run_folder), keys(run_folder, "every=10"), opener)  # until the run's own last step
    assert [line["step"] for line in lines(run_folder)] == [10, 20, 30]
    assert (run_folder / "evaluations.jsonl").read_bytes().startswith(before)
    with caplog.at_level(logging.INFO):
        run(str(run_folder), keys(run_folder, "every=10"), opener)
    assert caplog.messages == [f"nothing was left to evaluate: see {run_folder}/evaluations.jsonl"]


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    events.Reload()
    return events


def test_figures_and_texts_are_in_tensorboard(run_folder: Path, opener: Opener) -> None:
    save(run_folder / "checkpoints", 30)
    run(str(run_folder), keys(run_folder), opener)
    board, (line,) = run_folder / "tensorboard" / "evaluation", lines(run_folder)
    full, second = read(board), read(board / "exit_02")
    assert full.Tags()["scalars"] == ["measured/tokens_per_second"]
    for name in ("acceptance", "speedup", "expected_speedup", "tokens_per_second"):
        (event,) = second.Scalars(f"measured/{name}")
        assert (event.step, event.value) == (30, pytest.approx(line["exits"]["2"][name]))
    (text,) = second.Tensors("samples/text_1/text_summary")
    (shown,) = text.tensor_proto.string_val
    assert [x.removeprefix("    ") for x in shown.decode().split("\n")] == line["exits"]["2"][
        "texts"
    ][0].splitlines()
    assert "samples/prompt_2/text_summary" in full.Tags()["tensors"]
    assert "samples/drafted_text_2/text_summary" in second.Tags()["tensors"]


def test_what_a_killed_process_drew_without_a_line_is_hidden(
    run_folder: Path, opener: Opener
) -> None:
    save(run_folder / "checkpoints", 30)
    run(str(run_folder), keys(run_folder), opener)
    (run_folder / "evaluations.jsonl").write_text("")
    time.sleep(1.1)  # event files are named by the second
    run(str(run_folder), keys(run_folder), opener)
    events = read(run_folder / "tensorboard" / "evaluation")
    assert len(events.Scalars("measured/tokens_per_second")) == 1


def test_checkpoints_are_waited_for(
    run_folder: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([10, 30])
    monkeypatch.setattr(
        command.time, "sleep", lambda seconds: save(run_folder / "checkpoints", next(looks))
    )
    run(str(run_folder), keys(run_folder), opener)
    assert [line["step"] for line in lines(run_folder)] == [10, 30]


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_survived_and_said(
    run_folder: Path, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 30):
        save(run_folder / "checkpoints", step)

    def open_late(model: str, config: Placed) -> Loaded:
        if model.endswith("10"):
            shutil.rmtree(model)
            raise RuntimeError("a file is missing")
        return opener(model, config)

    run(str(run_folder), keys(run_folder, "every=10"), open_late)
    assert [line["step"] for line in lines(run_folder)] == [30]
    assert "step_00000010 was deleted while it was read" in caplog.text
    assert "not evaluated, for their checkpoints were gone: steps 10, 20;" in caplog.text


def test_one_that_is_damaged_is_an_error(run_folder: Path, opener: Opener) -> None:
    save(run_folder / "checkpoints", 30)

    def refuse(model: str, config: Placed) -> Loaded:
        raise RuntimeError("a file is damaged")

    with pytest.raises(RuntimeError, match="a file is damaged"):
        run(str(run_folder), keys(run_folder), refuse)
    assert lines(run_folder) == []


def test_tasks_are_answered_by_each_exit(
    run_folder: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    folder = run_folder.parent
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "def f", "choices": ["(x):", "é"], "answer": 0}\n' * 3)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    task = {
        "task": "local_choice",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "local_choice.yaml").write_text(json.dumps(data | task))
    save(run_folder / "checkpoints", 30)
    tasks = ["tasks=local_choice", f"task_folder={folder}", "limit=2", "exits=[1,4]"]
    run(str(run_folder), tasks, opener)
    (line,) = lines(run_folder)
    for name in ("1", "4"):
        assert line["exits"][name]["tasks"]["local_choice"]["acc"] in (0.0, 1.0)
    exit_run = read(run_folder / "tensorboard" / "evaluation" / "exit_01")
    assert exit_run.Tags()["scalars"] == ["tasks/local_choice/acc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["exits=[]"], r"exits=\[\] must name exits"),
        (["exits=[3,1]"], r"exits=\[3, 1\] must be ascending"),
        (["prompts=null"], "there is nothing to evaluate"),
        (["limit=3"], "limit=3 would be ignored without tasks"),
        (["num_speculations=0"], r"num_speculations must be in 1\.\.12, got 0"),
        (["every=0"], "every must be at least 1, got 0"),
        (["max_new_tokens=0"], "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(
    run_folder: Path, opener: Opener, changes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(str(run_folder), keys(run_folder, *changes), opener)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(ValueError, match="is not the folder of a run, for it has no"):
        main(["follow", str(tmp_path / "no"), "exits=[1]", f"prompts={tmp_path / 'p.txt'}"])
    words = ["exits=[1]", f"prompts={tmp_path / 'p.txt'}", "until=9"]
    with pytest.raises(ValueError, match="no: there is no such folder of a run"):
        main(["follow", str(tmp_path / "no"), *words])


def test_a_process_that_works_for_another_ends_when_that_is_killed() -> None:
    child = (
        "import os, time; from inference.follow.parent import work_for; work_for(os.getppid()); "
        "print(os.getpid(), os.nice(0), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid, niceness = map(int, process.stdout.readline().split())
    assert niceness >= 10
    process.kill()
    process.wait()
    try:
        assert process.stdout.read() == ""  # ends when the child has closed it
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
