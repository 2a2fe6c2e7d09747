import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel.meeting import meet
from parallel.world import start, stop
from tests.ranks import RankError, run_ranks


def _store(folder: str, world: int) -> dist.Store:
    store = dist.FileStore(f"{folder}/shared", world)
    store.set_timeout(timedelta(seconds=10))
    return store


def _meet(folder: str, world: int, dies: int | None) -> str | None:
    """Meet, and write into the common part; `dies` is gone before the others are answered."""
    rank = int(os.environ["RANK"])
    store = _store(folder, world)
    if rank == dies:
        store.set(f"meeting/rank/{rank}", f"ghost of {rank}")
        return None
    try:
        own = meet(store, rank, world, 10.0 if dies is None else 0.5)
    except RuntimeError as error:
        return str(error)
    if dies is not None:
        return "met"  # rank 0 has answered, and will say itself who is missing
    assert not own.check(["address/0"])  # nothing that an earlier start has left
    dist.barrier()
    own.set(f"address/{rank}", os.getpid().to_bytes(8, "big"))
    dist.barrier()
    seen = {own.get(f"address/{other}") for other in range(world)}
    assert len(seen) == world
    return "met"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_start_has_a_part_of_the_store_to_itself(tmp_path: Path, world: int) -> None:
    for _ in range(3):
        assert run_ranks(_meet, str(tmp_path), world, None, world=world) == ["met"] * world


@pytest.mark.parametrize("dies", [0, 1])
def test_a_start_whose_rank_dies_is_told_and_does_not_mislead_the_next(
    tmp_path: Path, dies: int
) -> None:
    messages = run_ranks(_meet, str(tmp_path), 3, dies, world=3, group=False)
    if dies == 0:
        missing = "rank 0 did not come within 0.5 s of the start"
        assert all(message.startswith(missing) for message in messages[1:])
    else:
        assert messages[0].startswith("ranks [1] did not come within 0.5 s of the start")
    assert run_ranks(_meet, str(tmp_path), 3, None, world=3) == ["met"] * 3


def _restart(port: int) -> float:
    """Join as torchrun's ranks do, over its store; return the sum of all ranks."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    world = start(device="cpu", timeout_seconds=20)
    total = torch.tensor(float(world.rank))
    dist.all_reduce(total)
    extra = dist.new_group(backend="gloo")
    dist.all_reduce(total, group=extra)
    if os.environ.get("ABORT") == str(world.rank):
        os._exit(1)
    stop()
    return float(total)


def test_ranks_that_start_again_over_the_same_store_do_not_look_for_the_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(3):
        monkeypatch.setenv("ABORT", "1")
        with pytest.raises(RankError):
            run_ranks(_restart, agent.port, world=2, group=False)
        monkeypatch.delenv("ABORT")
        assert run_ranks(_restart, agent.port, world=2, group=False) == [2.0, 2.0]
