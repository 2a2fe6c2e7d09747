import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference.load import load as load_for_inference
from parallel.publish import latest
from tests.e2e.runs import (
    STEPS,
    children,
    curve,
    kill,
    torchrun,
    train,
    wait_for_step,
    write_config,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train([str(write_config(folder))])
    return folder / "run"


def same_as(folder: Path, unbroken: Path) -> None:
    assert curve(folder / "run") == curve(unbroken)


def test_a_run_writes_every_step_and_validation(unbroken: Path) -> None:
    lines = curve(unbroken)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [4, 8, 12]
    valid = [line for line in lines if line["kind"] == "valid"]
    assert list(valid[0]["perplexity_per_exit"]) == [1, 2, 3, 4]
    assert valid[0]["tokens"] == 10 * 32
    assert valid[1]["loss_per_exit"][4] < valid[0]["loss_per_exit"][4]


def test_a_run_folder_says_how_it_was_made(unbroken: Path) -> None:
    assert {p.name for p in unbroken.iterdir()} == {
        "checkpoints",
        "commit.txt",
        "config.yaml",
        "diff.patch",
        "lock",
        "metrics.jsonl",
        "tensorboard",
        "versions.json",
    }
    assert json.loads((unbroken / "versions.json").read_text())["torch"] == torch.__version__


def test_a_run_killed_at_any_step_and_resumed_gives_the_same_curve(
    tmp_path: Path, unbroken: Path
) -> None:
    config = [str(write_config(tmp_path))]
    process = torchrun(config)
    wait_for_step(tmp_path / "run", 5)
    kill(process)
    assert curve(tmp_path / "run")[-1]["step"] < STEPS
    train(config)
    same_as(tmp_path, unbroken)


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_ranks_save_and_end_when_their_launcher_is_gone(tmp_path: Path, name: str) -> None:
    config = [str(write_config(tmp_path, steps=2000, checkpoint={"every": 2000}))]
    process, run = torchrun(config), tmp_path / "run"
    wait_for_step(run, 2)
    ranks = children(process.pid)
    os.kill(process.pid, getattr(signal, name))
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    newest = latest(run / "checkpoints")
    assert newest is not None
    steps = [line["step"] for line in curve(run) if line["kind"] == "train"]
    assert steps == list(range(1, json.loads((newest / "state.json").read_text())["step"] + 1))
    assert len(steps) < 2000


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends_cleanly_and_no_step_is_lost(
    tmp_path: Path, unbroken: Path, name: str
) -> None:
    config = [str(write_config(tmp_path, checkpoint={"every": 100}))]
    pid = os.fork()
    if pid == 0:
        try:
            train(config, ranks=1)
            os._exit(0)
        except BaseException:
            os._exit(1)
    wait_for_step(tmp_path / "run", 2)
    worker = children(pid)[0]
    os.kill(worker, getattr(signal, name))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    newest = latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    stopped_at = json.loads((newest / "state.json").read_text())["step"]
    assert stopped_at == curve(tmp_path / "run")[-1]["step"]
    train(config)
    for line, expected in zip(curve(tmp_path / "run"), curve(unbroken), strict=True):
        assert line["step"] == expected["step"]
        assert line["loss_per_exit"] == pytest.approx(expected["loss_per_exit"], rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_gives_the_same_curve(
    tmp_path: Path, unbroken: Path, ranks: int
) -> None:
    config = [str(write_config(tmp_path)), "steps=12"]
    train([*config, "checkpoint.every=4"], ranks=ranks)
    for line, expected in zip(curve(tmp_path / "run"), curve(unbroken), strict=True):
        assert line["loss_per_exit"] == pytest.approx(expected["loss_per_exit"], rel=1e-5)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = latest(run / "checkpoints")
    assert newest is not None
    (shard,) = (newest / "model").glob("*.safetensors")
    return load_file(shard)


def test_no_dropout_and_no_exit_weight_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    runs = {}
    for name, sections in {
        "plain": {"layer_dropout": None, "exit_loss": None},
        "neutral": {
            "layer_dropout": {"max_prob": 0.0, "over_time": "exp"},
            "exit_loss": {"e_scale": 0.0, "curriculum": "all"},
        },
    }.items():
        (tmp_path / name).mkdir()
        train([str(write_config(tmp_path / name, **sections))], ranks=1)
        runs[name] = weights(tmp_path / name / "run")
    assert runs["plain"].keys() == runs["neutral"].keys()
    for key, value in runs["plain"].items():
        assert torch.equal(value, runs["neutral"][key]), key


def test_documents_that_do_not_see_each_other_train_too(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    train([str(path), "data.cross_document_attention=false", "steps=3"], ranks=1)
    assert len([x for x in curve(tmp_path / "run") if x["kind"] == "train"]) == 3


def test_training_goes_on_from_a_hugging_face_folder(tmp_path: Path, unbroken: Path) -> None:
    from models.hf import save_pretrained

    source = load_for_inference(str(unbroken), dtype=torch.float32, device="cpu")
    named = [(n, p.detach()) for n, p in source.model.named_parameters()]
    save_pretrained(named, source.model.config, tmp_path / "hf", dtype=torch.float32)
    path = write_config(tmp_path, model=None, init_from=str(tmp_path / "hf"))
    train([str(path), "steps=4", "layer_dropout=null", "exit_loss=null"], ranks=2)
    first = curve(tmp_path / "run")[0]["loss"]
    assert first < 0.8 * curve(unbroken)[0]["loss"]
