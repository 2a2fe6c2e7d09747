from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from inference.export import ExportConfig, export
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.load import Loaded, load
from inference.self_speculative import self_speculative
from models.plan import full
from tests.e2e.runs import train, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported_run")
    train([str(write_config(folder))])
    return folder / "run"


PROMPTS = ["def f3_4(x):\n    return", "return x * 3", "f"]


def _plain(ours: Loaded, ids: Sequence[int], settings: Settings) -> list[int]:
    plan = full(ours.config.num_hidden_layers)
    return Generation(
        tuple(autoregressive(ours.model, ids, plan=plan, settings=settings))
    ).token_ids


def test_transformers_generates_the_same_text_from_an_export(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "hf", ExportConfig())
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    ours = load(run, dtype=torch.float32, device="cpu")
    prompt = "def f3_4(x):\n    return"
    ids = ours.encode(prompt)
    assert tokenizer(prompt)["input_ids"] == ids
    tokens = _plain(ours, ids, Settings(max_new_tokens=12))
    generated = theirs.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
    )
    assert generated[0, len(ids) :].tolist() == tokens
    assert tokenizer.decode(tokens) == ours.decode(tokens)


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_transformers_drafts_with_the_exits_of_an_export(
    run: Path, tmp_path: Path, exit_layer: int
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "hf", ExportConfig()))
    ours = load(run, dtype=torch.float32, device="cpu")
    # Only here are these read; as arguments of generate() they would be ignored.
    drafting = theirs.generation_config
    drafting.num_assistant_tokens, drafting.num_assistant_tokens_schedule = 4, "constant"
    drafting.assistant_confidence_threshold = 0.0
    calls = _count_calls(theirs.model.layers)
    settings = Settings(max_new_tokens=20)
    for ids in map(ours.encode, PROMPTS):
        generated = theirs.generate(
            torch.tensor([ids]),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            assistant_early_exit=exit_layer,
        )[0, len(ids) :].tolist()
        rounds = self_speculative(
            ours.model, ids, draft=full(exit_layer), num_speculations=4, settings=settings
        )
        speculated = Generation(tuple(rounds)).token_ids
        assert generated == speculated == _plain(ours, ids, settings)
    assert calls[exit_layer - 1] > calls[exit_layer] == calls[3]  # the exit drafted
    assert theirs.config.num_hidden_layers == 4


def _count_calls(layers: nn.ModuleList) -> Counter[int]:
    calls = Counter[int]()
    for number, layer in enumerate(layers):

        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        layer.register_forward_hook(count)
    return calls


def test_an_export_says_where_texts_end(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "hf", ExportConfig())
    ours = load(run, dtype=torch.float32, device="cpu")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ours.tokenizer.eos_id


def test_an_export_can_be_loaded_like_any_folder(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "hf", ExportConfig(dtype="bfloat16"))
    back, ours = (load(x, dtype=torch.bfloat16, device="cpu") for x in (folder, run))
    for (name, a), (_, b) in zip(
        back.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_an_export_does_not_overwrite_anything(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and was left as it is"):
        export(run, tmp_path / "full", ExportConfig())
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
