import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.llama import Llama
from parallel.checkpoint import (
    MODEL,
    OPTIMIZER,
    read_model,
    read_state,
    read_tensors,
)
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig
from parallel.publish import latest
from parallel.world import start
from tests.distributed.recipe import engine_steps, make_engine, model_config, whole
from tests.ranks import RankError, run_ranks
from tests.tiny import tiny_config

pytestmark = pytest.mark.ranks


def _train_and_save(
    folder: str, asynchronous: bool = False, keep_last: int = 2
) -> dict[str, Tensor]:
    """On a rank: save after steps 1, 2 and 3 of 5; return the state at step 3 and the losses."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    saver = Checkpointer(Path(folder), engine, keep_last=2, asynchronous=asynchronous)
    losses, at_3 = [], {}
    for step in range(5):
        losses += engine_steps(engine, world, steps=[step])
        if step < 3:
            state = {"tokens_seen": 100 * (step + 1)}
            saver.save(step + 1, state, lambda path: None)
        if step == 2:
            both = {**engine.weights(), **engine.optimizer_state()}
            at_3 = {name: whole(t).clone() for name, t in both.items()}
    saver.wait()
    return at_3 | {"losses": torch.tensor(losses, dtype=torch.float64)}


def _resume(folder: str) -> dict[str, Tensor]:
    """On a rank: read the newest checkpoint, return its whole state and the losses that follow."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    newest = latest(Path(folder))
    assert newest is not None
    step = read_state(newest)["step"]
    read_tensors(newest, MODEL, engine.weights())
    read_tensors(newest, OPTIMIZER, engine.optimizer_state())
    both = {**engine.weights(), **engine.optimizer_state()}
    state = {name: whole(t).clone() for name, t in both.items()}
    losses = engine_steps(engine, world, steps=range(step, 5))
    return state | {"losses": torch.tensor(losses, dtype=torch.float64)}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_resuming_on_as_many_ranks_is_bitwise(tmp_path: Path, asynchronous: bool) -> None:
    trained = run_ranks(_train_and_save, str(tmp_path), asynchronous, world=2)[0]
    resumed = run_ranks(_resume, str(tmp_path), world=2)[0]
    assert torch.equal(resumed.pop("losses"), trained.pop("losses")[3:])
    for name, value in trained.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (4, 2)])
def test_resuming_on_other_ranks_gives_the_same_curve(
    tmp_path: Path, before: int, after: int
) -> None:
    trained = run_ranks(_train_and_save, str(tmp_path), world=before)[0]
    resumed = run_ranks(_resume, str(tmp_path), world=after)[0]
    torch.testing.assert_close(resumed.pop("losses"), trained.pop("losses")[3:], rtol=0, atol=1e-6)
    for name, value in trained.items():
        assert torch.equal(resumed[name], value), name


def test_one_process_without_a_group_reads_shards_of_four_ranks(tmp_path: Path) -> None:
    trained = run_ranks(_train_and_save, str(tmp_path), world=4)[0]
    model = Llama(model_config()).double()
    newest = latest(tmp_path)
    assert newest is not None
    read_model(newest, model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name]), name


def test_old_checkpoints_are_deleted_and_latest_names_the_newest(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [
        "latest",
        "step_00000002",
        "step_00000003",
    ]
    assert (saved / "latest").read_text() == "step_00000003\n"


def test_a_checkpoint_holds_safetensors_and_json_only(saved: Path) -> None:
    files = [p for p in saved.rglob("*") if p.is_file() and p.name != "latest"]
    assert {p.suffix for p in files} == {".safetensors", ".json", ".xxh3"}


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(_train_and_save, str(folder), world=2)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved_once, tmp_path / "copy")
    return tmp_path / "copy"


def _newest(folder: Path) -> tuple[Path, Llama]:
    newest = latest(folder)
    assert newest is not None
    return newest, Llama(model_config()).double()


def test_a_missing_shard_is_named(saved: Path) -> None:
    newest, model = _newest(saved)
    shard = sorted((newest / MODEL).glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(RuntimeError, match=f"{shard.name} is missing"):
        read_model(newest, model)


def test_a_shard_that_was_cut_short_is_named(saved: Path) -> None:
    newest, model = _newest(saved)
    shard = sorted((newest / MODEL).glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=f"{shard.name} has .* bytes instead of"):
        read_model(newest, model)


def test_a_model_of_another_shape_is_refused_by_name(saved: Path) -> None:
    newest, _ = _newest(saved)
    wider = Llama(model_config(intermediate_size=256))
    with pytest.raises(ValueError, match=r"gate_proj\.weight is \(128, 64\).* but \(256, 64\)"):
        read_model(newest, wider)


def test_a_model_with_more_layers_is_refused_by_name(saved: Path) -> None:
    newest, _ = _newest(saved)
    with pytest.raises(ValueError, match=r"has no model\.layers\.5\."):
        read_model(newest, Llama(tiny_config(num_hidden_layers=6)))


def test_a_folder_without_a_manifest_is_not_complete(saved: Path) -> None:
    newest, model = _newest(saved)
    (newest / "manifest.json").unlink()
    with pytest.raises(RuntimeError, match="the checkpoint is not complete"):
        read_model(newest, model)


def test_the_manifest_lists_whole_shapes(saved: Path) -> None:
    newest, _ = _newest(saved)
    tensors = json.loads((newest / "manifest.json").read_text())["tensors"]
    assert tensors["lm_head.weight"] == {"shape": [96, 64], "dtype": "float64"}
    assert tensors["exp_avg.lm_head.weight"]["shape"] == [96, 64]


def _save_into_a_file(folder: str) -> None:
    """On a rank: the folder of checkpoints cannot be made; the next save must say so."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    saver = Checkpointer(Path(folder), engine, keep_last=1, asynchronous=True)
    saver.save(1, {}, lambda path: None)
    saver.wait()


def test_a_failure_in_the_background_is_an_error_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    message = "saving the checkpoint of step 1 failed on rank 0: NotADirectoryError"
    with pytest.raises(RankError, match=message):
        run_ranks(_save_into_a_file, str(tmp_path / "file"), world=1)
