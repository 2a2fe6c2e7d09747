"""One run whose ranks and engine change from leg to leg, against an unbroken one on one rank."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel import zero  # noqa: F401  # imported once, before ranks are forked
from parallel.checkpoint import MODEL, OPTIMIZER, read_state, read_tensors
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig, Stage, ZeroConfig
from parallel.publish import latest
from parallel.verified import good_checkpoint
from parallel.world import start
from tests.distributed.recipe import OPTIM, STEPS, engine_steps, make_engine, model_config, whole
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

STEADY = replace(OPTIM, eps=1e-3)
"""With the usual 1e-8, Adam turns a gradient of 1e-9 in float32 into a step of full length."""
FSDP = ParallelConfig()


def stage(number: Stage) -> ParallelConfig:
    return ParallelConfig(zero=ZeroConfig(stage=number))


def _leg(folder: str, parallel: ParallelConfig, steps: int, single: bool) -> dict[str, Tensor]:
    """On a rank: go on from the newest checkpoint for some steps, save, return losses and state."""
    world = start(device="cpu")
    dtype = torch.float32 if single else torch.float64
    engine = make_engine(model_config(), parallel, world, dtype, STEADY if single else OPTIM)
    newest, begin = latest(Path(folder)), 0
    if newest is not None:
        newest = good_checkpoint(newest)
        begin = read_state(newest)["step"]
        read_tensors(newest, MODEL, engine.weights())
        read_tensors(newest, OPTIMIZER, engine.optimizer_state())
    losses = engine_steps(engine, world, steps=range(begin, begin + steps))
    saver = Checkpointer(Path(folder), engine, keep_last=1, asynchronous=False)
    saver.save(begin + steps, {}, lambda path: None)
    both = {**engine.weights(), **engine.optimizer_state()}
    state = {name: whole(tensor).clone() for name, tensor in both.items()}
    return state | {"losses": torch.tensor(losses, dtype=torch.float64)}


def _run(
    folder: Path, legs: list[tuple[ParallelConfig, int, int]], single: bool
) -> dict[str, Tensor]:
    """Return the final state of a run of legs (engine, ranks, steps), and all its losses."""
    folder.mkdir()
    assert sum(steps for *_, steps in legs) == STEPS
    done = [
        run_ranks(_leg, str(folder), parallel, steps, single, world=ranks)[0]
        for parallel, ranks, steps in legs
    ]
    return done[-1] | {"losses": torch.cat([leg["losses"] for leg in done])}


@pytest.mark.parametrize(
    ("legs", "single"),
    [
        ([(FSDP, 1, 1), (FSDP, 2, 1), (FSDP, 4, 2), (FSDP, 1, 1)], False),
        pytest.param([(FSDP, 4, 2), (FSDP, 1, 1), (FSDP, 2, 2)], False, marks=pytest.mark.slow),
        ([(FSDP, 1, 1), (stage(3), 2, 1), (FSDP, 4, 1), (stage(3), 1, 1), (FSDP, 2, 1)], True),
        pytest.param(
            [(stage(1), 4, 2), (stage(2), 1, 1), (stage(3), 4, 1), (stage(1), 2, 1)],
            True,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fsdp 1-2-4-1", "fsdp 4-1-2", "fsdp and zero3", "all stages"],
)
def test_a_run_that_changes_ranks_and_engine_has_the_curve_of_one_rank(
    tmp_path: Path, legs: list[tuple[ParallelConfig, int, int]], single: bool
) -> None:
    found = _run(tmp_path / "legs", legs, single)
    expected = _run(tmp_path / "unbroken", [(FSDP, 1, STEPS)], single)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
