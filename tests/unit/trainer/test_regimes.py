from pathlib import Path

import pytest

from configs.command import ROOT
from configs.load import load
from trainer.check import check_report
from trainer.config import PretrainConfig

FOLDERS = ("pretrain", "continual", "finetune")
CONFIGS = sorted(path for folder in FOLDERS for path in (ROOT / "configs" / folder).glob("*.yaml"))

# arXiv 2404.16710, section 5 and tables 8 to 10: layers, p_max, over time, e_scale, curriculum,
# rotation, and where it says so learning rate, steps and sequences of a step.
PAPER = {
    "continual/llama2_7b": (32, 0.1, "constant", 0.2, "rotational", 8, 3e-5, 50_000, 256),
    "continual/llama2_13b": (40, 0.1, "constant", 0.1, "rotational", 39, 2e-5, 50_000, 256),
    "continual/llama3_8b": (32, 0.1, "constant", 0.1, "rotational", 8),
    "continual/llama3.2_1b": (16, 0.1, "constant", 0.1, "rotational", 8),
    "pretrain/llama_1.5b": (24, 0.1, "exp", 0.2, "rotational", 23, 8e-4, 50_000, 128),
    "pretrain/llama2_7b": (32, 0.2, "exp", 0.2, "rotational", 31, 8e-4, 50_000, 128),
    "finetune/llama1_7b_code": (32, 0.1, "constant", 1.0, "rotational", 16, 1e-4, 10_000),
    "finetune/llama_1.5b_top_v2": (24, 0.2, "constant", 1.0, "gradual", None, 1e-4, 5_800),
}
TOKENS = {"continual/llama3_8b": 419e9, "continual/llama3.2_1b": 839e9}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_resolves_and_its_header_has_its_command(path: Path) -> None:
    config = load(PretrainConfig, path)
    assert "whole run: " in check_report(config)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(str(path.relative_to(ROOT)) in line for line in header)
    assert config.run_folder.startswith("runs/")


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_has_its_hyperparameters(name: str) -> None:
    config = load(PretrainConfig, ROOT / "configs" / f"{name}.yaml")
    assert config.model is not None
    assert config.layer_dropout is not None
    assert config.exit_loss is not None
    found = (
        config.model.num_hidden_layers,
        config.layer_dropout.max_prob,
        config.layer_dropout.over_time,
        config.exit_loss.e_scale,
        config.exit_loss.curriculum,
        config.exit_loss.rotation,
        config.optim.lr,
        config.steps,
        config.batch.global_size,
    )
    assert found[: len(PAPER[name])] == PAPER[name]
    assert (config.init_from is None) == name.startswith("pretrain/")


@pytest.mark.parametrize("name", TOKENS)
def test_where_the_paper_gives_tokens_only_the_steps_make_them(name: str) -> None:
    config = load(PretrainConfig, ROOT / "configs" / f"{name}.yaml")
    tokens = config.steps * config.batch.global_size * config.data.seq_len
    assert tokens == pytest.approx(TOKENS[name], rel=0.01)


def test_there_is_a_small_config_for_each_regime() -> None:
    names = {f"{path.parent.name}/{path.stem}" for path in CONFIGS}
    assert names >= {
        "pretrain/quickstart",
        "continual/smollm2_135m",
        "finetune/smollm2_135m_gsm8k",
    }
