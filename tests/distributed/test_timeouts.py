import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel import timeouts
from parallel.config import FsdpConfig, ParallelConfig
from parallel.fsdp import make_mesh
from parallel.timeouts import is_lost_rank, open_groups, set_timeout
from parallel.world import start
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks


def _wait_for_rank_1(of_mesh: bool) -> float:
    """On a rank: seconds until a collective that rank 1 comes late to gives up."""
    timeouts.BACKSTOP_SECONDS = 0.0
    world = start(device="cpu")
    mesh = make_mesh(ParallelConfig(fsdp=FsdpConfig(shard_size=2)), world)
    group = mesh.get_group("shard") if of_mesh else None
    dist.all_reduce(torch.ones(1), group=group)
    set_timeout(open_groups(), 2.0)
    began = time.monotonic()
    if world.rank == 1:
        time.sleep(6)
        return 0.0
    if of_mesh and world.rank > 1:
        return 0.0
    with pytest.raises(RuntimeError) as error:
        dist.all_reduce(torch.ones(1), group=group)
    assert is_lost_rank(error.value)
    return time.monotonic() - began


def _outlived_by(of_mesh: bool) -> Tensor:
    waited = _wait_for_rank_1(of_mesh)
    dist.destroy_process_group()
    return torch.tensor(waited)


@pytest.mark.parametrize("of_mesh", [False, True], ids=["all ranks", "a group of a mesh"])
def test_a_timeout_set_while_a_run_goes_on_holds_in_every_group(of_mesh: bool) -> None:
    waited = run_ranks(_outlived_by, of_mesh, world=4)
    assert 1.5 < float(waited[0]) < 5


def test_errors_of_users_and_bugs_are_not_taken_for_a_lost_rank() -> None:
    assert not is_lost_rank(ValueError("optim.lr must be above 0"))
    assert not is_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_lost_rank(dist.DistBackendError("NCCL error"))
