"""Whole runs with a planted bad batch, against runs in which that step was put right by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.load import load
from data_pipelines.loader import Batch, Loader
from parallel import zero  # noqa: F401  # imported once, before ranks are forked
from parallel.world import start
from tests.distributed.recipe import whole
from tests.e2e.runs import curve, write_config
from tests.ranks import RankError, run_ranks
from trainer.__main__ import main
from trainer.build import Run, build_run
from trainer.config import PretrainConfig
from trainer.loop import plan_microbatches
from trainer.schedule import learning_rate
from trainer.step import train_step

pytestmark = pytest.mark.e2e

STEPS, EVERY, BAD = 24, 5, 17
"""The checkpoint before the bad batch is that of step 15."""
SPIKES = {"loss_deviations": 6.0, "window": 8}


def config(folder: Path, policy: str | None, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    spikes = None if policy is None else {"policy": policy, **SPIKES, **changes.pop("spikes", {})}
    sections = {
        "steps": STEPS,
        "checkpoint": {"every": EVERY, "keep_last": 9},
        "schedule": {"kind": "constant"},
        "layer_dropout": {"max_prob": 0.1},
        "validate": {"every": 12, "sequences": 12},
    }
    return str(write_config(folder, spikes=spikes, **sections, **changes))


def spoil_batches(bad: Sequence[int]) -> None:
    """In this process: let the labels of these steps' data be noise."""
    honest = Loader.microbatch

    def microbatch(self: Loader, step: int, index: int) -> Batch:
        batch = honest(self, step, index)
        if step not in bad:
            return batch
        noise = torch.Generator().manual_seed(index)
        return replace(batch, labels=torch.randint(0, 300, batch.labels.shape, generator=noise))

    Loader.microbatch = microbatch  # type: ignore[method-assign]


def _train(arguments: list[str], bad: Sequence[int]) -> None:
    spoil_batches(bad)
    main(arguments)


def train(arguments: list[str], bad: Sequence[int] = (BAD,), ranks: int = 2) -> None:
    run_ranks(_train, arguments, bad, world=ranks)


def state_of(run: Run) -> dict[str, Tensor]:
    return {**run.engine.weights(), **run.engine.optimizer_state()}


def copied(state: dict[str, Tensor]) -> list[Tensor]:
    return [t.to_local().clone() if hasattr(t, "to_local") else t.clone() for t in state.values()]


@torch.no_grad()
def put_back(state: dict[str, Tensor], copies: list[Tensor]) -> None:
    for tensor, copy in zip(state.values(), copies, strict=True):
        (tensor.to_local() if hasattr(tensor, "to_local") else tensor).copy_(copy)


def _by_hand(
    path: str, bad: Sequence[int], data: list[int], undone: list[int]
) -> dict[str, Tensor]:
    """Train a step on each item of `data`; put everything back after those in `undone`."""
    spoil_batches(bad)
    settings = load(PretrainConfig, path)
    run = build_run(settings, start(device="cpu"))
    mine = range(run.world.rank, settings.batch.num_microbatches, run.world.size)
    losses = []
    for step, source in enumerate(data):
        before = copied(state_of(run))
        batches = [run.train.microbatch(source, index) for index in mine]
        plans, weights = plan_microbatches(run, step, batches)
        result = train_step(
            run.engine,
            batches,
            plans,
            weights,
            step=step,
            learning_rate=learning_rate(settings.schedule, settings.optim.lr, step, settings.steps),
            clip_norm=settings.optim.clip_norm,
            chunk_tokens=None,
            device=run.world.device,
        )
        losses.append(result.loss)
        if source in undone:
            put_back(state_of(run), before)
    weights_now = {name: whole(t).clone() for name, t in run.engine.weights().items()}
    return weights_now | {"losses": torch.tensor(losses, dtype=torch.float64)}


def _final(path: str) -> dict[str, Tensor]:
    run = build_run(load(PretrainConfig, path), start(device="cpu"))
    return {name: whole(tensor).clone() for name, tensor in run.engine.weights().items()}


def losses_of(folder: Path) -> Tensor:
    lines = [line for line in curve(folder / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return torch.tensor([line["loss"] for line in lines], dtype=torch.float64)


def spikes_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in curve(folder / "run") if line["kind"] == "spike"]


AFTER = [*range(15), *range(BAD + 1, BAD + 1 + STEPS - 15)]
"""The data of a run that went back from the bad batch to step 15."""


@pytest.mark.parametrize(
    ("policy", "ranks", "stage"),
    [
        pytest.param("skip", 1, None, marks=pytest.mark.slow),
        pytest.param("skip", 2, None, marks=pytest.mark.slow),
        ("skip", 2, 3),
        pytest.param("rollback", 1, None, marks=pytest.mark.slow),
        ("rollback", 2, None),
        pytest.param("rollback", 2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_bad_batch_leaves_no_trace_in_the_weights(
    tmp_path: Path, policy: str, ranks: int, stage: int | None
) -> None:
    data, undone = (AFTER, []) if policy == "rollback" else ([*range(STEPS)], [BAD])
    engine = {} if stage is None else {"parallel": {"zero": {"stage": stage}}}
    path = config(tmp_path / "it", policy, **engine)
    train([path], ranks=ranks)
    reference = config(tmp_path / "hand", None, **engine)
    expected = run_ranks(_by_hand, reference, [BAD], data, undone, world=ranks)[0]
    assert torch.equal(losses_of(tmp_path / "it"), expected.pop("losses"))
    found = run_ranks(_final, path, world=ranks)[0]
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    (spike,) = spikes_of(tmp_path / "it")
    assert (spike["policy"], spike["data_step"], spike["spike_step"]) == (policy, BAD, BAD + 1)
    assert spike["step"] == (BAD + 1 if policy == "skip" else 16)
    assert "deviations above the median" in str(spike["reason"])


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("rollback", 15),
        ("rollback", 20),
        pytest.param("skip", 15, marks=pytest.mark.slow),
        pytest.param("skip", 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_before_or_after_a_spike_repeats_the_curve(
    tmp_path: Path, policy: str, kept: int
) -> None:
    path = config(tmp_path, policy)
    train([path])
    unbroken = curve(tmp_path / "run")
    pointer = tmp_path / "run" / "checkpoints" / "latest"
    pointer.write_text(f"step_{kept:08d}\n")
    train([path])
    assert curve(tmp_path / "run") == unbroken
    state = json.loads((tmp_path / "run/checkpoints/step_00000024/state.json").read_text())
    assert state["spikes"]["jumps"] == ([[15, 3]] if policy == "rollback" else [])


def test_more_spikes_than_the_budget_stop_the_run_before_the_update(tmp_path: Path) -> None:
    path = config(tmp_path, "rollback", spikes={"at_most": 1})
    with pytest.raises(RankError, match=r"as many as spikes\.at_most allows") as error:
        train([path], bad=(BAD, BAD + 2))
    assert "step 16: the loss at exit 4 is " in str(error.value)
    assert {p.name for p in (tmp_path / "run" / "failures").iterdir()} == {
        "rank-0.txt",
        "rank-1.txt",
    }


def test_two_spikes_in_a_row_go_back_to_the_same_checkpoint(tmp_path: Path) -> None:
    path = config(tmp_path / "it", "rollback")
    train([path], bad=(BAD, BAD + 2), ranks=1)
    reference = config(tmp_path / "hand", None)
    data = [*range(15), *range(BAD + 3, BAD + 3 + STEPS - 15)]
    expected = run_ranks(_by_hand, reference, [], data, [], world=1)[0]
    assert torch.equal(losses_of(tmp_path / "it"), expected["losses"])
    assert [s["data_step"] for s in spikes_of(tmp_path / "it")] == [BAD, BAD + 2]


def test_a_spike_before_the_first_checkpoint_cannot_be_rolled_back(tmp_path: Path) -> None:
    path = config(tmp_path, "rollback")
    with pytest.raises(RankError, match=r"there is no checkpoint yet: lower checkpoint\.every"):
        train([path, "checkpoint.every=100"], ranks=1)


def test_policy_stop_stops_at_a_spike(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"step 17: the loss at exit 4 is .* stopped before the"):
        train([config(tmp_path, "stop")], ranks=1)
    assert curve(tmp_path / "run")[-1]["step"] == BAD


def _train_with_a_hole(arguments: list[str]) -> None:
    """In a rank: one weight's gradient is infinite once, on rank 1 alone."""
    honest = torch.autograd.backward
    calls = [0]

    def backward(*given: Any, **named: Any) -> None:
        calls[0] += 1
        gradients = given[1]
        if calls[0] == 2 * BAD + 1 and torch.distributed.get_rank() == 1:
            gradients = [g * float("inf") for g in gradients]
        honest(given[0], gradients, **named)

    torch.autograd.backward = backward
    main(arguments)


def test_a_gradient_that_is_not_finite_obeys_the_policy(tmp_path: Path) -> None:
    path = config(tmp_path / "it", "skip", spikes={"loss_deviations": None, "window": None})
    run_ranks(_train_with_a_hole, [path], world=2)
    reference = config(tmp_path / "hand", None)
    data = list(range(STEPS))
    expected = run_ranks(_by_hand, reference, [], data, [BAD], world=2)[0]
    assert torch.equal(losses_of(tmp_path / "it"), expected["losses"])
    (spike,) = spikes_of(tmp_path / "it")
    assert "the gradient norm is nan although every loss is finite" in str(spike["reason"])
    assert "a fault of the hardware" in str(spike["reason"])
    assert spike["grad_norm"] is None
