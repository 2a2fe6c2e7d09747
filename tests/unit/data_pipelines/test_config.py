from pathlib import Path

import pytest

from configs.help import help_text
from configs.load import load_section
from data_pipelines.config import DataConfig

YAML = """
data:
  source: {stdlib: {max_megabytes: 12}}
  tokenizer: {sentencepiece: {vocab_size: 4096}}
  seq_len: 256
trainer: {steps: 3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.yaml"
    path.write_text(YAML)
    return path


def test_the_data_section_of_a_larger_file_is_read_alone(path: Path) -> None:
    config = load_section(DataConfig, path, "data")
    assert config.source.stdlib is not None
    assert config.source.stdlib.max_megabytes == 12
    assert config.seq_len == 256


def test_a_file_that_is_the_section_alone_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("source: {stdlib: {}}\ntokenizer: {path: x.model}\nseq_len: 8\n")
    config = load_section(DataConfig, path, "data", ["data.seq_len=4"])
    assert (config.seq_len, config.tokenizer.path) == (4, "x.model")
    assert config.source.stdlib is not None


def test_an_override_can_exchange_the_source(path: Path) -> None:
    overrides = ["data.source.stdlib=null", "data.source.files.path=corpus"]
    config = load_section(DataConfig, path, "data", overrides)
    assert config.source.files is not None
    assert config.source.files.path == "corpus"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source.files.path=x", "exactly one of stdlib, files, hub, got stdlib and files"),
        ("data.source.stdlib=null", "exactly one of stdlib, files, hub, got none"),
        ("data.tokenizer.path=x", "exactly one of sentencepiece, path, got sentencepiece and path"),
        ("data.seq_len=0", "data.seq_len must be at least 1, got 0"),
        ("data.num_processes=0", "data.num_processes must be at least 1"),
        ("data.valid_fraction=1.0", r"data.valid_fraction must be in \[0, 1\), got 1.0"),
        ("data.seed=-1", "data.seed must be"),
        ("data.tokenizer.sentencepiece.vocab_size=258", "vocab_size must be above 258"),
        ("data.source.stdlib.max_megabytes=0", "max_megabytes must be positive, got 0"),
        ("data.seqlen=3", "unknown key data.seqlen; did you mean data.seq_len?"),
        ("trainer.steps=3", "unknown key trainer; known: data"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_section(DataConfig, path, "data", [override])
    assert "\n" not in str(caught.value)


def test_every_key_is_explained_in_the_help() -> None:
    lines = help_text(DataConfig, "data.").splitlines()
    keys = [number for number, line in enumerate(lines) if line.startswith("data.")]
    assert [lines[number] for number in keys if not lines[number + 1].startswith("    ")] == []
    assert "data.source.files.pattern: str = absent" in lines
