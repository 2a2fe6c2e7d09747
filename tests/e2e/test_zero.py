"""Whole training runs under ZeRO: saved, killed, resumed, on other ranks and by another engine."""

from pathlib import Path

import pytest
import torch

from inference.load import load as load_for_inference
from parallel import zero  # noqa: F401  # imported once, before ranks are forked
from tests.e2e.runs import STEPS, curve, kill, torchrun, train, wait_for_step, write_config
from tests.ranks import RankError

pytestmark = pytest.mark.e2e


def config(folder: Path, stage: int, **changes: object) -> str:
    return str(write_config(folder, parallel={"zero": {"stage": stage}}, **changes))


@pytest.fixture(scope="module", params=[1, 2, 3])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"stage_{request.param}")
    train([config(folder, request.param)])
    return folder / "run"


def stage_of(run: Path) -> int:
    return int(run.parent.name.split("_")[1][0])


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    train([str(write_config(folder))])
    return folder / "run"


def assert_close(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    for line, other in zip(curve(found), curve(expected), strict=True):
        assert line.keys() == other.keys()
        assert line["step"] == other["step"]
        assert line["loss_per_exit"] == pytest.approx(other["loss_per_exit"], rel=tolerance)


def test_the_curve_is_that_of_fsdp(unbroken: Path, fsdp: Path) -> None:
    assert_close(unbroken, fsdp)


def test_a_run_stopped_and_resumed_gives_the_same_curve_bit_for_bit(
    tmp_path: Path, unbroken: Path
) -> None:
    path = config(tmp_path, stage_of(unbroken))
    process = torchrun([path])
    wait_for_step(tmp_path / "run", 5)
    kill(process)
    assert curve(tmp_path / "run")[-1]["step"] < STEPS
    train([path])
    assert curve(tmp_path / "run") == curve(unbroken)


@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [
        pytest.param("parallel.zero.stage=3", "parallel.zero.stage=3", 4, marks=pytest.mark.slow),
        ("parallel.zero.stage=2", "parallel.fsdp.reshard_after_forward=true", 4),
        ("parallel.fsdp.reshard_after_forward=true", "parallel.zero.stage=3", 1),
    ],
)
def test_a_run_goes_on_on_other_ranks_at_another_stage_or_with_another_engine(
    tmp_path: Path, fsdp: Path, before: str, after: str, ranks: int
) -> None:
    path = str(write_config(tmp_path))
    process = torchrun([path, before])
    wait_for_step(tmp_path / "run", 4)
    kill(process)
    train([path, after], ranks=ranks)
    assert_close(tmp_path / "run", fsdp)


def test_a_run_is_read_for_inference_directly(unbroken: Path, fsdp: Path) -> None:
    found, expected = (
        load_for_inference(str(run), dtype=torch.float32, device="cpu").model.state_dict()
        for run in (unbroken, fsdp)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=0)


def test_a_background_save_is_read_like_any_other(tmp_path: Path, unbroken: Path) -> None:
    changes = {"checkpoint": {"every": 3, "keep_last": 2, "asynchronous": True}}
    train([config(tmp_path, stage_of(unbroken), **changes)])
    found, expected = (
        load_for_inference(str(run), dtype=torch.float32, device="cpu").model.state_dict()
        for run in (tmp_path / "run", unbroken)
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"is (nan|inf)( although .*)?, first .*; stopped before"):
        train([config(tmp_path, 3, optim={"lr": 1e18, "clip_norm": None})])


def test_nothing_is_compiled_and_no_compiler_is_needed(tmp_path: Path) -> None:
    extensions = tmp_path / "extensions"
    bare = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(extensions), "CC": "", "CXX": ""}
    process = torchrun([config(tmp_path, 2), "steps=3"], environment=bare)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert not extensions.exists()
    assert "ninja" not in output
    assert "deprecated" not in output


def test_a_deepspeed_json_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": 99}')
    path = config(tmp_path, 2)
    with pytest.raises(RankError, match="train_batch_size is 99, but this run's config says 16"):
        train([path, f"parallel.zero.deepspeed_config={tmp_path / 'ds.json'}"])
