"""The guides of the regimes: each from a checkpoint or nothing to faster decoding, as written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from inference.card.gather import front_matter
from tests.e2e.guides import (
    Command,
    check_names,
    commands,
    follow,
    in_a_shell,
    make_workspace,
    run_here,
)

pytestmark = pytest.mark.e2e

REGIMES: dict[str, str | None] = {
    "pretraining.md": None,
    "continual.md": None,
    "finetuning.md": "## Adapters",
}
"""Each page, and where its way is whole; what follows is only run with the slow tests."""
PAGES = tuple(REGIMES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands of all pages run; what one has made, the next need not make again."""
    folder, before = make_workspace(tmp_path_factory.mktemp("guides")), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def done() -> set[str]:
    return set()


def exports(lines: list[Command]) -> list[str]:
    found = [each.words for each in lines if "export" in each.words]
    return [words[words.index("export") + 2] for words in found]


@pytest.mark.parametrize("page", PAGES)
def test_a_guide_leads_to_a_model_with_a_card(
    page: str, workspace: Path, done: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    lines = commands(page, REGIMES[page])
    follow(lines, run_here, done)
    assert "tokens/s" in capfd.readouterr().out
    for folder in exports(lines):
        card = ModelCard.load(workspace / folder / "README.md")
        assert card.data.library_name == "transformers"
        assert "self-speculative" in (card.data.tags or [])
        assert "| exit | loss | perplexity | agreement |" in card.text


@pytest.mark.slow
def test_the_guides_run_in_a_shell_as_written(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    done = set[str]()
    for page in PAGES:
        follow(commands(page), in_a_shell(tmp_path), done)
    assert front_matter(tmp_path / "runs/lora_adapter/README.md")["library_name"] == "peft"


@pytest.mark.parametrize("page", PAGES)
def test_a_guide_is_the_whole_way(page: str) -> None:
    text = "\n".join(each.text for each in commands(page))
    wanted = ["--check", "torchrun", "sbatch", "tensorboard", "perplexity", "tune", "export"]
    assert [each for each in [*wanted, "generate"] if each not in text] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sbatch slurm/nowhere.sh configs/pretrain/debug.yaml", "there is no slurm/nowhere.sh"),
        ("sbatch slurm/pretrain.sh configs/pretrain/none.yaml", "there is no configs/pretrain"),
        ("sbatch slurm/pretrain.sh configs/pretrain/debug.yaml stepps=3", "did you mean steps"),
        ("sbatch slurm/generate.sh", "nothing of it is checked"),
    ],
)
def test_a_wrong_name_in_a_guide_is_noticed(text: str, message: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=message):
        check_names(Command(text, True))
