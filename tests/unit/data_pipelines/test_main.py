import runpy
import sys
from pathlib import Path

import pytest

from data_pipelines.__main__ import main

CONFIG = """
data:
  source: {{files: {{path: {corpus}}}}}
  tokenizer: {{sentencepiece: {{vocab_size: 300}}}}
  seq_len: 16
  valid_fraction: 0.2
  cache_folder: {cache}
trainer: {{steps: 3}}
"""


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Path:
    path = tmp_path / "trainer.yaml"
    path.write_text(CONFIG.format(corpus=corpus, cache=tmp_path / "cache"))
    return path


def test_the_command_prepares_data_and_says_what_and_where(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data_pipelines", str(config), "data.seq_len=8"])
    monkeypatch.delitem(sys.modules, "data_pipelines.__main__")
    runpy.run_module("data_pipelines", run_name="__main__")
    out, err = capfd.readouterr()
    (folder,) = (config.parent / "cache").iterdir()
    assert str(folder) in out
    assert "8 positions a sequence, vocabulary of 300" in out
    assert "tokenise" in err


def test_a_mistake_is_named_and_nothing_is_written(config: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key data.seqlen; did you mean data.seq_len\?$"):
        main([str(config), "data.seqlen=8"])
    assert not (config.parent / "cache").exists()


def test_a_second_run_shows_the_same_table(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for _ in range(2):
        main([str(config)])
        tables.append(capsys.readouterr().out.splitlines()[:5])
    assert tables[0] == tables[1]
    assert [line.split()[0] for line in tables[0][:3]] == ["split", "train", "valid"]


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m data_pipelines CONFIG")
    assert "data.source.files.path: str = required" in out


def test_no_config_shows_how_to_give_one() -> None:
    with pytest.raises(SystemExit, match="usage: python -m data_pipelines CONFIG"):
        main([])
