"""Checkpoints of ours, DeepSpeed's and Hugging Face's, from each kind to each other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_pipelines.tokenize import train_sentencepiece
from models.hf_config import config_to_hf
from parallel.checkpoint import MODEL, OPTIMIZER, TOKENIZER, read_tensors
from parallel.checkpointer import Checkpointer
from parallel.config import FsdpConfig, ParallelConfig, ZeroConfig
from parallel.convert.convert import ConvertConfig, convert
from parallel.manifest import read_manifest
from parallel.publish import latest
from parallel.world import start
from tests.distributed.deepspeed_engine import (
    KINDS,
    STEPS,
    Kind,
    full_state,
    inner_steps,
    make_plain_engine,
    train_plainly,
)
from tests.distributed.recipe import engine_steps, make_engine, model_config, whole
from tests.ranks import run_ranks
from tests.tiny import tiny_config

pytestmark = pytest.mark.ranks

CONFIG = tiny_config()
Tensors = dict[str, Tensor]


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def tensors_of(run: Path) -> Tensors:
    """Return all tensors of a run's checkpoint as DCP reads them, but the steps."""
    checkpoint = latest(run / "checkpoints")
    assert checkpoint is not None
    found: Tensors = {}
    described = read_manifest(checkpoint).tensors
    for part in (MODEL, OPTIMIZER):
        names = [n for n in described if (part == MODEL) == n.startswith(("model.", "lm_head."))]
        if names:
            empty = {
                n: torch.empty(described[n]["shape"], dtype=getattr(torch, described[n]["dtype"]))
                for n in names
            }
            read_tensors(checkpoint, part, empty)
            found |= empty
    return found


def without_steps(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("step.")}


def to(source: Path, target: Path, **settings: str) -> Path:
    convert(source, target, ConvertConfig(**settings))
    return target


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG, dtype="float32")))
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "a run of ours goes there and back, and loses nothing on its way. "
    tokenizer = train_sentencepiece([text * 50], 300, folder)
    tokenizer.save(folder)
    return folder


def _train_and_save(folder: str) -> list[Tensors]:
    states = []
    for kind in KINDS:
        engine = make_plain_engine(CONFIG, kind, seed=1, wrapped=kind[1])
        train_plainly(engine)
        engine.save_checkpoint(f"{folder}/{kind[0]}{kind[1]}", client_state={"epoch": 7})
        states.append(full_state(engine))
    return states


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[Path, Tensors]]:
    """By kind: where three ranks of DeepSpeed saved, and what they trained."""
    folder = tmp_path_factory.mktemp("deepspeed")
    states = run_ranks(_train_and_save, str(folder), world=3)[0]
    return {
        kind: (folder / f"{kind[0]}{kind[1]}", state)
        for kind, state in zip(KINDS, states, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_deepspeed_saved_becomes_ours_bit_by_bit(
    saved: dict[Kind, tuple[Path, Tensors]], kind: Kind, config_folder: Path, tmp_path: Path
) -> None:
    source, expected = saved[kind]
    tag = source / f"global_step{STEPS}"
    run = to(tag if kind[1] else source, tmp_path / "run", to="dcp", config=str(config_folder))
    found = tensors_of(run)
    assert_equal(without_steps(found), expected)
    assert all(found[f"step.{name}"] == STEPS for name in expected if "exp_avg" not in name)


@pytest.mark.parametrize("kind", [(1, True), (3, False)])
def test_what_deepspeed_saved_is_loaded_by_transformers(
    saved: dict[Kind, tuple[Path, Tensors]], kind: Kind, config_folder: Path, tmp_path: Path
) -> None:
    source, expected = saved[kind]
    to(source, tmp_path / "hf", to="hf", config=str(config_folder))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    weights = {name: value for name, value in expected.items() if "exp_avg" not in name}
    assert_equal(dict(model.state_dict()), weights)


def _load_universal(folder: str, kinds: list[Kind], wrapped: bool) -> list[Tensors]:
    found = []
    for kind in kinds:
        settings = {"checkpoint": {"load_universal": True}}
        engine = make_plain_engine(CONFIG, kind, seed=5, wrapped=wrapped, **settings)
        path, client = engine.load_checkpoint(folder)
        assert path is not None
        position = torch.tensor([engine.global_steps, client.get("epoch", 0)])
        steps = torch.tensor(inner_steps(engine))
        found.append(full_state(engine) | {"position": position, "steps": steps})
        for state in engine.optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()  # as docs/checkpoints.md says
        train_plainly(engine, 1)
        assert set(inner_steps(engine)) == {STEPS + 1}
    return found


@pytest.mark.parametrize(("kind", "world"), [((1, False), 2), ((2, True), 1), ((3, False), 2)])
def test_deepspeed_loads_a_universal_checkpoint_at_every_stage(
    saved: dict[Kind, tuple[Path, Tensors]], kind: Kind, world: int, tmp_path: Path
) -> None:
    source, expected = saved[kind]
    folder = str(to(source, tmp_path / "zero", to="zero"))
    for found in run_ranks(_load_universal, folder, KINDS, kind[1], world=world)[0]:
        assert found.pop("position").tolist() == [STEPS, 7]
        assert set(found.pop("steps").tolist()) == {STEPS}
        assert_equal(found, expected)


@pytest.mark.parametrize("kind", [(1, False), (3, True)])
def test_what_deepspeeds_own_converter_makes_is_read(
    saved: dict[Kind, tuple[Path, Tensors]], kind: Kind, config_folder: Path, tmp_path: Path
) -> None:
    source, expected = saved[kind]
    folders = [f"--input_folder={source}/global_step{STEPS}", f"--output_folder={tmp_path}/tag"]
    workers = ["--num_extract_workers=1", "--num_merge_workers=1", "--inject_missing_state"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, *workers]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    run = to(tmp_path, tmp_path / "run", to="dcp", config=str(config_folder))
    found = tensors_of(run)
    assert_equal(without_steps(found), expected)
    assert found["step.model.norm.weight"] == STEPS


def _train_ours(folder: str, parallel: ParallelConfig, tokenizer: str) -> None:
    """On a rank: train, and save what a run saves."""
    world = start(device="cpu")
    engine = make_engine(model_config(), parallel, world, torch.float32)
    engine_steps(engine, world, steps=[0, 1])
    checkpoints = Path(folder) / "checkpoints"
    saver = Checkpointer(checkpoints, engine, keep_last=1, asynchronous=False)

    def write_extras(path: Path) -> None:
        shutil.copytree(tokenizer, path / TOKENIZER)
        (path / "config.yaml").write_text("run_folder: here\n")
        described = json.dumps(config_to_hf(engine.model.config, dtype="float32"))
        (path / MODEL / "config.json").write_text(described)

    saver.save(2, {"tokens_seen": 55, "world_size": world.size, "data": "abc"}, write_extras)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A run of ours, with FSDP2 on four ranks, whose vocabulary holds the tokenizer's."""
    folder = tmp_path_factory.mktemp("run")
    run_ranks(_train_ours, str(folder), ParallelConfig(), str(tokenizer_folder), world=4)
    return folder


def test_a_run_of_ours_goes_to_deepspeed_and_back(run: Path, tmp_path: Path) -> None:
    to(run, tmp_path / "zero", to="zero")
    back = to(tmp_path / "zero", tmp_path / "back", to="dcp")
    assert_equal(tensors_of(back), tensors_of(run))
    before, after = latest(run / "checkpoints"), latest(back / "checkpoints")
    assert before is not None
    assert after is not None
    assert after.name == before.name
    for name in ("state.json", "config.yaml", "tokenizer/tokenizer.model"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    assert (back / "config.yaml").read_text() == "run_folder: here\n"


def test_deepspeed_loads_a_run_of_ours(run: Path, tmp_path: Path) -> None:
    folder = str(to(run, tmp_path / "zero", to="zero"))
    expected = without_steps(tensors_of(run))
    for found in run_ranks(_load_ours, folder, world=2)[0]:
        assert_equal(found, expected)


def _load_ours(folder: str) -> list[Tensors]:
    found = []
    for kind in KINDS:
        engine = make_plain_engine(
            model_config(), kind, seed=5, checkpoint={"load_universal": True}
        )
        engine.load_checkpoint(folder)
        found.append(full_state(engine))
    return found


def _resume(folder: str, parallel: ParallelConfig) -> Tensors:
    """On a rank: read a checkpoint into an engine; return the state and the next step's loss."""
    world = start(device="cpu")
    engine = make_engine(model_config(), parallel, world, torch.float32)
    newest = latest(Path(folder) / "checkpoints")
    assert newest is not None
    read_tensors(newest, MODEL, engine.weights())
    read_tensors(newest, OPTIMIZER, engine.optimizer_state())
    both = {**engine.weights(), **engine.optimizer_state()}
    state = {name: whole(tensor).clone() for name, tensor in both.items()}
    return state | {"losses": torch.tensor(engine_steps(engine, world, steps=[2]))}


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(fsdp=FsdpConfig()), ParallelConfig(zero=ZeroConfig(stage=3))],
    ids=["fsdp", "zero3"],
)
def test_either_engine_resumes_what_was_converted(
    run: Path, tmp_path: Path, parallel: ParallelConfig
) -> None:
    to(run, tmp_path / "zero", to="zero")
    back = to(tmp_path / "zero", tmp_path / "back", to="dcp")
    resumed = run_ranks(_resume, str(back), parallel, world=2)[0]
    unconverted = run_ranks(_resume, str(run), parallel, world=2)[0]
    assert_equal(resumed, unconverted)
    resumed.pop("losses")
    assert_equal(resumed, tensors_of(run))
