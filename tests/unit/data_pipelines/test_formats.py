import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipelines.config import (
    DataConfig,
    FilesSource,
    Format,
    HubSource,
    SourceConfig,
    TokenizerConfig,
)
from data_pipelines.formats import encode_sample
from data_pipelines.loader import Loader, open_split
from data_pipelines.prepare import prepare, read_prepared
from data_pipelines.samples import read_samples
from data_pipelines.stream_source import open_stream
from data_pipelines.tokenize import load_tokenizer, train_sentencepiece

Make = Callable[..., DataConfig]

PARSE = "[IN:GET_WEATHER what is the weather [SL:DATE_TIME today ] ]"
SOLUTION = "    return a + b\n"
ARTICLE, SUMMARY = 'It rained, "a lot",\nin NA.', "Rain in NA ."


def write_layout(name: str, folder: Path) -> Path:
    """Write two rows of a data set as it is published."""
    if name == "top_v2":  # a tab-separated file with a header, and quotes that mean nothing
        path = folder / "weather_train.tsv"
        rows = f'weather\tplay "hello\t{PARSE}\nweather\tNA\t{PARSE}\n'
        path.write_text("domain\tutterance\tsemantic_parse\n" + rows)
        return path
    if name == "cnn_dm":
        path = folder / "train.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["id", "article", "highlights"], ["007", ARTICLE, SUMMARY]])
            writer.writerow(["008", ARTICLE, SUMMARY])
        return path
    rows_of: dict[str, dict[str, Any]] = {
        "gsm8k": {"question": "What is 1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
        "human_eval": {
            "task_id": "HumanEval/0",
            "prompt": "def add(a, b):\n",
            "canonical_solution": SOLUTION,
            "test": "assert",
            "entry_point": "add",
        },
        "xsum": {"document": ARTICLE, "summary": SUMMARY, "id": "1"},
        "prompt_response": {"prompt": "2+2=", "response": "4"},
        "chat": {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!"},
            ]
        },
    }
    if name in ("xsum", "chat"):
        path = folder / "train.parquet"
        pq.write_table(pa.Table.from_pylist([rows_of[name]] * 2), path)
    else:
        path = folder / "train.jsonl"
        path.write_text(2 * (json.dumps(rows_of[name]) + "\n"))
    return path


def source(path: Path, name: Any, **settings: Any) -> SourceConfig:
    return SourceConfig(files=FilesSource(path=str(path), format=name, **settings))


SAMPLES: dict[Format, dict[str, Any]] = {
    "top_v2": {"prompt": 'play "hello', "response": f"\n{PARSE}"},
    "gsm8k": {
        "prompt": "Question: What is 1+1?\nAnswer:",
        "response": " 1+1=<<1+1=2>>2\n#### 2",
    },
    "human_eval": {"prompt": "def add(a, b):\n", "response": SOLUTION},
    "cnn_dm": {"prompt": f"Article: {ARTICLE}\nSummary:", "response": f" {SUMMARY}"},
    "xsum": {"prompt": f"Article: {ARTICLE}\nSummary:", "response": f" {SUMMARY}"},
    "prompt_response": {"prompt": "2+2=", "response": "4"},
    "chat": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
        ]
    },
}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_published_layout_is_read_the_same_at_rest_and_streamed(
    tmp_path: Path, name: Format
) -> None:
    path = write_layout(name, tmp_path)
    at_rest = list(read_samples(source(path, name)))
    stream = open_stream(source(path, name, streaming=True), "set")
    assert at_rest == next(stream.documents(0, 0, 8))
    assert len(at_rest) == 2
    assert json.loads(at_rest[0]) == SAMPLES[name]


def test_a_local_folder_laid_out_like_a_hub_dataset_is_read_the_same(tmp_path: Path) -> None:
    write_layout("xsum", tmp_path)
    hub = SourceConfig(hub=HubSource(name=str(tmp_path), format="xsum"))
    streamed = SourceConfig(hub=HubSource(name=str(tmp_path), format="xsum", streaming=True))
    assert list(read_samples(hub)) == next(open_stream(streamed, "set").documents(0, 0, 8))
    assert json.loads(next(read_samples(hub))) == SAMPLES["xsum"]


def test_prompt_and_response_can_be_worded_as_a_chat(tmp_path: Path) -> None:
    path = write_layout("gsm8k", tmp_path)
    sample = json.loads(next(read_samples(source(path, "gsm8k", chat_template=True))))
    assert sample["messages"][0]["role"] == "user"
    assert sample["messages"][1] == {
        "role": "assistant",
        "content": "1+1=<<1+1=2>>2\n#### 2",
    }


@pytest.mark.parametrize(
    ("name", "row", "complaint"),
    [
        ("gsm8k", {"question": "x"}, "line 1 has no column 'answer': it has question"),
        ("gsm8k", {"question": "x", "answer": 3}, "line 1: answer must be a text, got 3"),
        ("chat", {"messages": "Hi"}, "messages must be a list of messages, got 'Hi'"),
        ("chat", {"messages": [{"role": "user"}]}, "a message needs role and content"),
        (
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}]},
            "no message is the assistant's: there is nothing to learn",
        ),
    ],
)
def test_a_row_that_is_not_as_the_format_says_is_named(
    tmp_path: Path, name: str, row: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=complaint):
        list(read_samples(source(path, name)))


def test_the_prompt_is_not_learnt_and_a_long_answer_loses_its_end(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["1 + 1 = 2 of it"] * 50, 270, tmp_path)
    sample = json.dumps({"prompt": "1 + 1 =", "response": " 2 of it"})
    ids = encode_sample(tokenizer, sample, 100)
    prompt = [~i for i in ids if i < 0]
    answer = [i for i in ids if i >= 0]
    assert ids == [~i for i in prompt] + answer
    assert tokenizer.decode(prompt) == "1 + 1 ="
    assert tokenizer.decode(answer) == " 2 of it"
    assert answer[-1] == tokenizer.eos_id
    assert encode_sample(tokenizer, sample, len(prompt) + 1) == ids[: len(prompt) + 2]
    assert encode_sample(tokenizer, sample, len(prompt) - 1) == []


def test_prepared_samples_train_only_on_answers(config_for: Make, tmp_path: Path) -> None:
    path = tmp_path / "maths.jsonl"
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(source=source(path, "gsm8k"), seq_len=128, cross_document_attention=False)
    folder = prepare(config)
    tokenizer = load_tokenizer(folder / "tokenizer")
    size = read_prepared(folder)
    assert size.train.documents + size.valid.documents == 200
    loader = Loader(
        open_split(folder, "train"),
        seed=0,
        micro_batch_size=1,
        num_microbatches=1,
        documents=True,
    )
    found = []
    for index in range(loader.num_sequential):
        batch = loader.sequential(index)
        assert batch.documents is not None
        assert bool((batch.ids >= 0).all())
        for number in torch.unique(batch.documents):
            labels = batch.labels[batch.documents == number]
            found.append(tokenizer.decode(labels[labels >= 0].tolist()))
    answers = {f" It is {i}." for i in range(200)}
    assert len([text for text in found if text in answers]) == size.train.documents
    assert set(found) <= {*answers, ""}


def test_what_a_row_is_is_part_of_the_fingerprint(config_for: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"question": f"What is {i}?", "answer": "It.", "text": f"{i} is"} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {"valid_fraction": 0.0, "seq_len": 64}
    trained = config_for(source=source(path, "gsm8k"), **changes)
    given = TokenizerConfig(path=str(prepare(trained) / "tokenizer"))
    folders = {
        prepare(config_for(source=source(path, name), tokenizer=given, **changes))
        for name in ("gsm8k", "text")
    }
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"format": "gsm8k", "column": "text"}, "column 'text' has no effect with format gsm8k"),
        ({"chat_template": True}, "chat_template=true has no effect with format text"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FilesSource(path="x", **settings)
