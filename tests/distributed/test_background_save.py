import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_with_dcp

from models.llama import Llama
from parallel.checkpoint import MODEL, OPTIMIZER, read_model, step_folder
from parallel.checkpointer import Checkpointer
from parallel.config import FsdpConfig, ParallelConfig
from parallel.engine import Engine
from parallel.publish import latest
from parallel.shard_file import write_shards
from parallel.world import World, start
from tests.distributed.recipe import engine_steps, make_engine, model_config
from tests.ranks import RankError, run_ranks

pytestmark = pytest.mark.ranks


def _nothing(folder: Path) -> None:
    """Write no extras."""


def _set_up(folder: str, asynchronous: bool = True) -> tuple[World, Engine, Checkpointer]:
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    saver = Checkpointer(Path(folder), engine, keep_last=9, asynchronous=asynchronous)
    engine_steps(engine, world, steps=[0])
    return world, engine, saver


def _slowly(job: Callable[..., object]) -> Callable[..., object]:
    def slow(*arguments: object) -> object:
        time.sleep(0.005)
        return job(*arguments)

    return slow


def _save_and_train_on(folder: str, asynchronous: bool) -> None:
    """On a rank: save after step 1, and let the copying be slower than the steps that follow."""
    world, engine, saver = _set_up(folder, asynchronous)
    np.copyto = _slowly(np.copyto)
    saver.save(1, {}, _nothing)
    engine_steps(engine, world, steps=[1, 2])
    saver.wait()


def _pieces(folder: Path) -> dict[tuple[str, tuple[int, ...]], Tensor]:
    """Return all shards in a folder by tensor name and offset; each may be there only once."""
    found: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sharding = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118  # not a dict
                key = (name, tuple(sharding[name]["saved_offsets"]))
                assert key not in found
                found[key] = file.get_tensor(name)
    return found


def _same_tensors(ours: Path, theirs: Path) -> None:
    """The files themselves may differ: safetensors writes metadata in random order."""
    a, b = _pieces(ours), _pieces(theirs)
    assert a.keys() == b.keys()
    for key, piece in b.items():
        assert torch.equal(a[key], piece), key


def test_a_background_save_holds_the_state_it_was_asked_for_bit_for_bit(tmp_path: Path) -> None:
    for name, asynchronous in (("behind", True), ("waited", False)):
        run_ranks(_save_and_train_on, str(tmp_path / name), asynchronous, world=2)
    for part in (MODEL, OPTIMIZER):
        behind, waited = (step_folder(tmp_path / name, 1) / part for name in ("behind", "waited"))
        _same_tensors(behind, waited)


def _save_twice(folder: str) -> list[str]:
    """On a rank: ask for a second save while the first is being written; say what was done when."""
    _, _, saver = _set_up(folder)
    done: list[str] = []

    def write_extras(path: Path) -> None:
        done.append(f"begin {path.name}")
        time.sleep(0.2)
        done.append(f"end {path.name}")

    saver.save(1, {}, write_extras)
    saver.save(2, {}, write_extras)
    saver.wait()
    return done


def test_a_save_begins_after_the_one_before_has_ended(tmp_path: Path) -> None:
    first, second = run_ranks(_save_twice, str(tmp_path), world=2)
    steps = [f"step_{step:08d}.tmp" for step in (1, 2)]
    assert first == [f"{what} {step}" for step in steps for what in ("begin", "end")]
    assert second == []  # rank 0 alone writes extras


def _fail_on(rank: int, folder: str) -> tuple[int, str, float]:
    """On a rank: after a good save, one rank may write no more; return when and how all stop."""
    world, engine, saver = _set_up(folder)
    saver.save(1, {}, _nothing)
    saver.wait()
    if world.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    began = time.monotonic()
    saver.save(2, {}, _nothing)
    for step in range(1, 100):
        stop = torch.tensor(float(saver.failed))
        dist.all_reduce(stop)  # as the step's agreement does
        engine_steps(engine, world, steps=[step % 5])
        if stop:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            try:
                saver.save(step, {}, _nothing)
            except RuntimeError as error:
                return step, str(error), time.monotonic() - began
    raise AssertionError("nobody noticed")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_cannot_write_stops_all_at_the_same_step(tmp_path: Path, rank: int) -> None:
    (step, message, seconds), other = run_ranks(_fail_on, rank, str(tmp_path), world=2)
    assert f"saving the checkpoint of step 2 failed on rank {rank}: " in message
    assert "File too large" in message
    assert other[:2] == (step, message)
    assert seconds < 20  # the group's timeout is 30
    newest = latest(tmp_path)
    assert newest == step_folder(tmp_path, 1)
    read_model(newest, Llama(model_config()).double())


def _killed_while_saving(folder: str) -> None:
    """On a rank: save, then be killed in the middle of the next save."""
    _, _, saver = _set_up(folder)
    saver.save(1, {}, _nothing)
    saver.save(2, {}, lambda path: os.kill(os.getpid(), signal.SIGKILL))
    saver.wait()


def test_being_killed_while_saving_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="wait status 9"):
        run_ranks(_killed_while_saving, str(tmp_path), world=1)
    assert step_folder(tmp_path, 2).with_suffix(".tmp").is_dir()
    newest = latest(tmp_path)
    assert newest == step_folder(tmp_path, 1)
    read_model(newest, Llama(model_config()).double())


def _write_both_ways(folder: str, shard_size: int | None) -> None:
    """On a rank: write weights and moments with DCP's own writer, and with ours."""
    world = start(device="cpu")
    config = ParallelConfig(fsdp=FsdpConfig(shard_size=shard_size))
    engine = make_engine(model_config(), config, world)
    engine_steps(engine, world, steps=[0])
    for part, tensors in ((MODEL, engine.weights()), (OPTIMIZER, engine.optimizer_state())):
        theirs = HuggingFaceStorageWriter(f"{folder}/dcp/{part}", save_distributed=True)
        save_with_dcp(dict(tensors), storage_writer=theirs)
        (Path(folder) / "ours").mkdir(exist_ok=True)
        write_shards(Path(folder) / "ours" / part, tensors)


@pytest.mark.parametrize(("ranks", "shard_size"), [(1, None), (2, None), (4, 2)])
def test_shards_are_those_that_dcp_writes(
    tmp_path: Path, ranks: int, shard_size: int | None
) -> None:
    run_ranks(_write_both_ways, str(tmp_path), shard_size, world=ranks)
    for part in (MODEL, OPTIMIZER):
        _same_tensors(tmp_path / "ours" / part, tmp_path / "dcp" / part)
