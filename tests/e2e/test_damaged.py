"""A run whose checkpoints were damaged, or had something planted in them, as readers see it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from inference.load import load
from parallel.convert.convert import ConvertConfig, convert
from parallel.publish import latest
from tests.e2e.runs import STEPS, curve, train, write_config
from tests.ranks import RankError
from tests.saved import flip, plant

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train([str(write_config(folder))])
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> tuple[str, Path]:
    """A config, and a copy of the run that it describes, with checkpoints of steps 9 and 12."""
    shutil.copytree(trained_once / "run", tmp_path / "run")
    content = (trained_once / "config.yaml").read_text()
    path = tmp_path / "config.yaml"
    path.write_text(content.replace(str(trained_once / "run"), str(tmp_path / "run")))
    return str(path), tmp_path / "run"


def newest(run: Path) -> Path:
    found = latest(run / "checkpoints")
    assert found is not None
    return found


def shard(checkpoint: Path, part: str, rank: int = 1) -> Path:
    return checkpoint / part / f"shard-{rank:05d}-model-00001-of-00001.safetensors"


def test_a_run_goes_on_from_the_newest_good_checkpoint_with_the_same_curve(
    trained: tuple[str, Path],
) -> None:
    path, run = trained
    unbroken, damaged = curve(run), newest(run)
    flip(shard(damaged, "optimizer", rank=2))
    train([path])
    assert curve(run) == unbroken
    assert newest(run) == damaged
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "latest",
        "step_00000009",
        "step_00000012",
        "step_00000012.damaged",
    ]


def test_strict_and_hopeless_runs_are_refused_and_nothing_is_touched(
    trained: tuple[str, Path],
) -> None:
    path, run = trained
    flip(shard(newest(run), "model"))
    with pytest.raises(RankError, match=r"is damaged: .*step_00000009 is good: take that"):
        train([path, "resume=strict"])
    flip(newest(run).with_name("step_00000009") / "state.json")
    with pytest.raises(RankError, match="does not begin anew by itself"):
        train([path], ranks=1)
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["latest", "step_00000009", "step_00000012"]
    assert curve(run)[-1]["step"] == STEPS


def test_inference_and_conversion_refuse_a_flipped_bit(trained: tuple[str, Path]) -> None:
    _, run = trained
    flip(shard(newest(run), "model"))
    with pytest.raises(RuntimeError, match=r"is damaged: .*step_00000009 is good: take that"):
        load(run, dtype=torch.float32, device="cpu")
    with pytest.raises(RuntimeError, match=r"is damaged: .*step_00000009 is good: take that"):
        convert(run, run.parent / "out", ConvertConfig(to="hf"))
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize("name", ["model.pt", ".metadata", "optimizer/shard-00001.bin"])
def test_no_reader_loads_a_planted_pickle(trained: tuple[str, Path], name: str) -> None:
    path, run = trained
    fuse = run / "fuse"
    plant(newest(run) / name, fuse)
    with pytest.raises(RankError, match="is a pickle, which may run any code"):
        train([path], ranks=1)
    with pytest.raises(RuntimeError, match="is a pickle, which may run any code"):
        load(run, dtype=torch.float32, device="cpu")
    with pytest.raises(RuntimeError, match="is a pickle, which may run any code"):
        convert(run, run.parent / "out", ConvertConfig(to="hf"))
    assert not fuse.exists()


def test_a_pickle_in_place_of_a_shard_is_loaded_by_nobody(trained: tuple[str, Path]) -> None:
    path, run = trained
    fuse = run / "fuse"
    plant(shard(newest(run), "model"), fuse)
    with pytest.raises(RankError, match=r"safetensors (is a pickle|has \d+ bytes instead of)"):
        train([path, "resume=strict"], ranks=1)
    with pytest.raises(RuntimeError, match=r"safetensors (is a pickle|has \d+ bytes instead of)"):
        load(run, dtype=torch.float32, device="cpu")
    assert not fuse.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_hugging_face_folder_is_loaded_by_nobody(
    trained: tuple[str, Path], name: str
) -> None:
    path, run = trained
    folder, fuse = run.parent / "hf", run.parent / "fuse"
    convert(run, folder, ConvertConfig(to="hf"))
    (folder / "model.safetensors").unlink()
    plant(folder / name, fuse)
    message = f"{name} (is a pickle, which may run any code|cannot be read)"
    changes = [f"init_from={folder}", "model=null", f"run_folder={run.parent / 'new'}"]
    with pytest.raises(RankError, match=message):
        train([path, *changes], ranks=1)
    with pytest.raises(ValueError, match=message):
        load(folder, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match=message):
        convert(folder, run.parent / "out", ConvertConfig(to="dcp"))
    assert not fuse.exists()


def test_a_step_that_was_left_by_a_crash_is_saved_again(trained: tuple[str, Path]) -> None:
    path, run = trained
    unbroken = curve(run)
    (run / "checkpoints" / "latest").write_text("step_00000009\n")
    (run / "checkpoints" / "step_00000010.tmp").mkdir()
    train([path])
    assert curve(run) == unbroken
    assert newest(run).name == "step_00000012"
    assert json.loads((newest(run) / "state.json").read_text())["step"] == STEPS
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["latest", "step_00000009", "step_00000012"]
