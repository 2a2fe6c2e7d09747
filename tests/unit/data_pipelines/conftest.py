"""A folder of small documents, made from a seed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.config import (
    DataConfig,
    FilesSource,
    SentencePieceConfig,
    SourceConfig,
    TokenizerConfig,
)

WORDS = ["self", "return", "x", "def f(a, b):", "    ", "\t", "naïve", "日本", "0x1F", "=="]


def make_document(seed: int) -> str:
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=6)) for _ in range(draw.randint(1, 8))]
    return f"# {seed}\n" + "\n".join(lines) + "\n"


@pytest.fixture
def documents() -> list[str]:
    return [make_document(seed) for seed in range(60)]


@pytest.fixture
def corpus(tmp_path: Path, documents: list[str]) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"{number:03d}.txt").write_bytes(document.encode())
    return folder


@pytest.fixture
def config_for(tmp_path: Path, corpus: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        settings: dict[str, Any] = {
            "source": SourceConfig(files=FilesSource(path=str(corpus))),
            "tokenizer": TokenizerConfig(sentencepiece=SentencePieceConfig(vocab_size=300)),
            "seq_len": 16,
            "valid_fraction": 0.2,
            "cache_folder": str(tmp_path / "cache"),
            "num_processes": 1,
        }
        return DataConfig(**(settings | changes))

    return make
