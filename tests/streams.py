"""Small sources to mix and to stream: JSON lines whose documents say which they are."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.config import (
    DataConfig,
    FilesSource,
    MixedSource,
    SentencePieceConfig,
    SourceConfig,
    StreamingConfig,
    TokenizerConfig,
)
from data_pipelines.loader import Loader
from data_pipelines.mixture import MixtureLoader
from data_pipelines.open import open_train
from data_pipelines.prepare_sources import prepare_data


def write_documents(folder: Path, files: int, rows: int, word: str = "web") -> Path:
    """Write so many files of so many rows; document i of file f begins "word f i:"."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        lines = (
            {"text": f"{word} {file} {row}: " + "a model skips layers " * (row * 7 % 5)}
            for row in range(rows)
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{file:02d}.jsonl").write_text(text)
    return folder


def write_questions(path: Path, rows: int) -> Path:
    """Write GSM8K's layout."""
    lines = (
        {"question": f"What is {i} plus {i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"}
        for i in range(rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def data_config(folder: Path, **changes: Any) -> DataConfig:
    """Return a config of a streamed folder `web`, with its cache beside it."""
    if not (folder / "web").exists():
        write_documents(folder / "web", files=3, rows=40)
    settings: dict[str, Any] = {
        "source": streamed(folder / "web"),
        "tokenizer": TokenizerConfig(sentencepiece=SentencePieceConfig(vocab_size=300)),
        "seq_len": 32,
        "valid_fraction": 0.1,
        "cache_folder": str(folder / "cache"),
        "num_processes": 1,
        "streaming": StreamingConfig(shuffle_documents=8, workers=0),
    }
    return DataConfig(**(settings | changes))


def streamed(path: Path, **settings: Any) -> SourceConfig:
    """Return a folder as a source that is streamed."""
    return SourceConfig(files=FilesSource(path=str(path), streaming=True, **settings))


def mixed_config(folder: Path, **changes: Any) -> DataConfig:
    """Return a mixture of a streamed source, a prepared one, and prepared questions."""
    web = write_documents(folder / "web", files=3, rows=40)
    books = write_documents(folder / "books", files=1, rows=30, word="book")
    maths = write_questions(folder / "maths.jsonl", rows=60)
    sources = {
        "web": MixedSource(weight=5, files=FilesSource(path=str(web), streaming=True)),
        "books": MixedSource(weight=3, files=FilesSource(path=str(books))),
        "maths": MixedSource(weight=2, files=FilesSource(path=str(maths), format="gsm8k")),
    }
    return data_config(folder, **({"source": None, "mixture": sources, "seq_len": 64} | changes))


def opened(config: DataConfig, **changes: Any) -> Loader | MixtureLoader:
    """Return what trains on the data: 4 microbatches of 2 rows a step, unless changed."""
    settings = {"seed": 3, "micro_batch_size": 2, "num_microbatches": 4}
    return open_train(config, prepare_data(config), **(settings | changes))
