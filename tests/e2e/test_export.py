from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from inference.export import ExportConfig, export
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.load import load
from models.plan import full
from tests.e2e.runs import train, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported_run")
    train([str(write_config(folder))])
    return folder / "run"


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
    plan = full(ours.config.num_hidden_layers)
    settings = Settings(max_new_tokens=12)
    tokens = Generation(
        tuple(autoregressive(ours.model, ids, plan=plan, settings=settings))
    ).token_ids
    generated = theirs.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
    )
    assert generated[0, len(ids) :].tolist() == list(tokens)
    assert tokenizer.decode(tokens) == ours.decode(tokens)


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
