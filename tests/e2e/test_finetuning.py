"""From a Hugging Face folder by LoRA or frozen parts to one that transformers and peft load."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.export import ExportConfig, export
from inference.load import load
from models.hf import save_pretrained
from models.plan import full
from models.tokens import make_tokens
from parallel.checkpoint import MODEL, OPTIMIZER, latest
from parallel.pieces import Piece, read_checkpoint_pieces
from tests.e2e.runs import curve, train, write_config
from tests.ranks import RankError
from tests.saved import flip
from tests.tiny import tiny_config, tiny_llama

pytestmark = pytest.mark.e2e

LORA: dict[str, Any] = {
    "rank": 4,
    "alpha": 32.0,
    "dropout": 0.1,
    "targets": ["q_proj", "v_proj", "down_proj"],
}
IDS = torch.arange(20)[None] * 7 % 300


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, as a folder in Hugging Face form."""
    folder = tmp_path_factory.mktemp("base") / "hf"
    config = tiny_config(vocab_size=320, hidden_size=32, intermediate_size=64)
    weights = tiny_llama(config, dtype=torch.float32).named_parameters()
    save_pretrained(weights, config, folder, dtype=torch.float32)
    return folder


def written(folder: Path, base: Path, **changes: object) -> list[str]:
    """Write a config that goes on from the base; a run of 6 steps in the folder's `run`."""
    changes = {"steps": 6, "init_from": str(base), "model": None, "lora": LORA} | changes
    return [str(write_config(folder, **changes))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A run with adapters on two ranks."""
    folder = tmp_path_factory.mktemp("lora")
    train(written(folder, base))
    return folder / "run"


def stored(run: Path, part: str) -> dict[str, Any]:
    newest = latest(run / "checkpoints")
    assert newest is not None
    parts: dict[str, list[torch.Tensor]] = {}
    for file in sorted((newest / part).glob("*.safetensors")):  # in the order of the ranks
        for name, tensor in load_file(file).items():
            parts.setdefault(name, []).append(tensor)
    return {name: torch.cat(t) if t[0].dim() else t[0] for name, t in parts.items()}


def logits_of(source: Path) -> torch.Tensor:
    model = load(source, dtype=torch.float32, device="cpu").model
    tokens = make_tokens(model.config, torch.arange(IDS.shape[1])[None])
    with torch.no_grad():
        return model.unembed(model(IDS, tokens, full(4))[4])


def test_a_checkpoint_holds_adapters_and_names_its_base(run: Path, base: Path) -> None:
    names = set(stored(run, MODEL))
    assert len(names) == 4 * 3 * 2
    assert all(".lora_" in name for name in names)
    moments = {f"{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names}
    assert set(stored(run, OPTIMIZER)) == moments
    newest = latest(run / "checkpoints")
    assert newest is not None
    said = json.loads((newest / MODEL / "base.json").read_text())
    assert said["source"] == str(base)
    assert said["lora"]["rank"] == 4


def test_adapters_learn(run: Path) -> None:
    losses = [line["loss_per_exit"] for line in curve(run) if line["kind"] == "valid"]
    assert losses[-1][4] < losses[0][4]  # type: ignore[index]


def test_a_resumed_run_is_bitwise_the_unbroken_one(tmp_path: Path, run: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step_00000006")
    (again / "checkpoints" / "latest").write_text("step_00000003\n")
    train([str(run.parent / "config.yaml"), f"run_folder={again}"])
    assert curve(again) == curve(run)
    after, before = stored(again, MODEL), stored(run, MODEL)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_transformers_loads_the_merged_export(run: Path, base: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "hf", ExportConfig())
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = theirs(IDS).logits
    torch.testing.assert_close(found, logits_of(run), rtol=0, atol=1e-4)
    before = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        assert (before(IDS).logits - found).abs().max() > 1e-2
    assert AutoTokenizer.from_pretrained(folder)("return x")["input_ids"]


def test_ranks_read_their_parts_merged(run: Path) -> None:
    newest = latest(run / "checkpoints")
    assert newest is not None
    whole = dict(load(run, dtype=torch.float32, device="cpu").model.named_parameters())
    cuts = {name: tuple(slice(n // 2, n) for n in p.shape) for name, p in whole.items()}
    pieces = {
        name: Piece(cut, torch.empty_like(whole[name].detach()[cut]), tuple(whole[name].shape))
        for name, cut in cuts.items()
    }
    read_checkpoint_pieces(newest, pieces)
    for name, piece in pieces.items():
        torch.testing.assert_close(
            piece.values, whole[name].detach()[cuts[name]], rtol=0, atol=1e-6
        )


def test_adapters_are_exported_in_the_form_of_peft(run: Path, base: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "adapter", ExportConfig(adapter=True))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    there = load_file(folder / "adapter_model.safetensors")
    trained = stored(run, MODEL)
    assert {f"base_model.model.{name}" for name in trained} == there.keys()
    with pytest.raises(ValueError, match="is not empty"):
        export(run, folder, ExportConfig(adapter=True))
    with pytest.raises(ValueError, match="no adapters"):
        export(base, tmp_path / "other", ExportConfig(adapter=True))


def test_damaged_adapters_are_not_exported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    newest = latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    flip(next((newest / MODEL).glob("*.safetensors")))
    with pytest.raises(RuntimeError, match=r"damaged|checksum|xxh3"):
        export(tmp_path / "run", tmp_path / "adapter", ExportConfig(adapter=True))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_peft_loads_the_exported_adapters(run: Path, base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = export(run, tmp_path / "adapter", ExportConfig(adapter=True))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits_of(run), rtol=0, atol=1e-4)


def test_a_base_that_changed_or_is_gone_is_named(tmp_path: Path, base: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    arguments = written(tmp_path, moved, steps=3)
    train(arguments, ranks=1)
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] += 1.0
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="whose weights are not what they were"):
        load(tmp_path / "run", dtype=torch.float32, device="cpu")
    with pytest.raises(RankError, match="whose weights are not what they were"):
        train(arguments, ranks=1)
    shutil.rmtree(moved)
    with pytest.raises(RuntimeError, match="which is not there"):
        load(tmp_path / "run", dtype=torch.float32, device="cpu")


def test_frozen_layers_are_those_of_the_base_in_an_export(tmp_path: Path, base: Path) -> None:
    train(written(tmp_path, base, lora=None, freeze={"layers_from": 2}, steps=3), ranks=1)
    folder = export(tmp_path / "run", tmp_path / "hf", ExportConfig())
    before, after = (load_file(path / "model.safetensors") for path in (base, folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    low = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")
    assert moved == {name for name in before if name.startswith(low)}
