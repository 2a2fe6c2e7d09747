"""What all ranks find, say and do alike about checkpoints and the disk they are on."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel.checkpoint import step_folder
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig
from parallel.publish import checkpoints_in, latest, step_of
from parallel.verified import good_checkpoint, verify
from parallel.world import start
from tests.disks import small_disk
from tests.distributed.recipe import engine_steps, make_engine, model_config
from tests.ranks import RankError, run_ranks
from tests.saved import flip, plant, save

pytestmark = pytest.mark.ranks

SHARD = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (3, 6):
        newest = save(tmp_path / "checkpoints", step)
    return newest


def _refusal(folder: str, strict: bool) -> str:
    """On a rank: say why there is nothing to go on from."""
    start(device="cpu")
    try:
        good_checkpoint(Path(folder), strict=strict)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it was taken")


@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_all_ranks_raise_the_same_line_whoever_read_the_file(saved: Path, file: str) -> None:
    flip(saved / file / SHARD)
    first, second = run_ranks(_refusal, str(saved), True, world=2)
    assert f"{file}/{SHARD} is damaged" in first
    assert first.endswith("step_00000003 is good: take that")
    assert first == second
    assert saved.is_dir()


def test_all_ranks_refuse_a_planted_pickle(saved: Path, tmp_path: Path) -> None:
    plant(saved / "optimizer" / "rank_1.pt", tmp_path / "fuse")
    first, second = run_ranks(_refusal, str(saved), False, world=2)
    assert "rank_1.pt is a pickle" in first
    assert first == second
    assert not (tmp_path / "fuse").exists()


def _chosen(folder: str) -> list[str]:
    """On a rank: say which checkpoint is taken, and what is logged."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("parallel").addHandler(handler)
    start(device="cpu")
    return [good_checkpoint(Path(folder)).name, *said]


def test_all_ranks_go_back_to_the_same_good_checkpoint_and_one_says_so(saved: Path) -> None:
    flip(saved / "optimizer" / SHARD)
    (first, damage, chosen), second = run_ranks(_chosen, str(saved), world=2)
    assert first == "step_00000003"
    assert second == [first]
    assert damage.endswith("; it is kept as step_00000006.damaged")
    assert "the run goes on from " in chosen
    assert chosen.endswith("step_00000003, 3 steps before that")
    assert latest(saved.parent) == step_folder(saved.parent, 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Has room for two checkpoints of the recipe's model and half of a third."""
    with small_disk(tmp_path / "disk", 16) as mounted:
        yield mounted


def _fill_the_disk(disk: str, asynchronous: bool) -> tuple[list[int], str, int]:
    """On a rank: save more than there is room for; then make room; say how it went.

    Returns:
        The steps whose checkpoints are there, what the save said that must not be left out, and
        the newest step in the end.
    """
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    folder = Path(disk) / "checkpoints"
    saver = Checkpointer(folder, engine, keep_last=9, asynchronous=asynchronous)
    engine_steps(engine, world, steps=[0])
    for step in range(1, 9):
        saver.save(step, {}, lambda path: None, may_be_left_out=True)
        saver.wait()
    there = [step_of(path) for path in checkpoints_in(folder)]
    message = ""
    try:
        saver.save(9, {}, lambda path: None)
        saver.wait()
    except RuntimeError as error:
        message = str(error)
    engine_steps(engine, world, steps=[1])  # all ranks have seen it
    if world.is_first:
        shutil.rmtree(step_folder(folder, 1))
    engine_steps(engine, world, steps=[2])
    saver.save(10, {}, lambda path: None)
    saver.wait()
    newest = latest(folder)
    assert newest is not None
    verify(newest)
    return there, message, step_of(newest)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_saves_out_until_there_is_room(disk: Path, asynchronous: bool) -> None:
    first, second = run_ranks(_fill_the_disk, str(disk), asynchronous, world=2)
    there, message, newest = first
    assert first == second
    assert 1 <= len(there) < 8
    assert there == list(range(1, len(there) + 1))
    assert "saving the checkpoint of step 9 failed on rank 0: OSError: [Errno 28] a" in message
    assert "needs 5.8 MB, but " in message
    assert "MB free: make room there, or lower checkpoint.keep_last" in message
    assert newest == 10


def _fill_while_writing(disk: str) -> None:
    """On a rank: let the disk be full only once writing has begun."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    folder = Path(disk) / "checkpoints"
    saver = Checkpointer(folder, engine, keep_last=9, asynchronous=False)
    engine_steps(engine, world, steps=[0])

    def write_extras(path: Path) -> None:
        (path / "large").write_bytes(bytes(shutil.disk_usage(path).free + 1))

    saver.save(1, {}, write_extras, may_be_left_out=True)


def test_nothing_is_left_of_a_save_for_which_the_room_ended(disk: Path) -> None:
    run_ranks(_fill_while_writing, str(disk), world=2)
    assert list((disk / "checkpoints").iterdir()) == []


def test_an_error_that_is_no_lack_of_room_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(RankError, match="NotADirectoryError"):
        run_ranks(_fill_the_disk, str(tmp_path), False, world=1)
