import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import (
    DataConfig,
    FilesSource,
    SentencePieceConfig,
    SourceConfig,
    TokenizerConfig,
)
from data_pipelines.loader import open_split
from data_pipelines.prepare import prepare, read_prepared
from data_pipelines.tokenize import load_tokenizer
from tests.ranks import run_ranks

Make = Callable[..., DataConfig]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def documents_in(folder: Path, split: str) -> list[str]:
    """The documents that the sequences of a split spell; the last may have lost its end."""
    sequences = open_split(folder, split)
    ids, documents = sequences.rows(np.arange(len(sequences)))
    stream = [*ids[:, :-1].reshape(-1).tolist(), int(ids[-1, -1])]
    numbers = [*documents[:, :-1].reshape(-1).tolist(), int(documents[-1, -1])]
    tokenizer = load_tokenizer(folder / "tokenizer")
    texts = []
    for _, group in itertools.groupby(zip(numbers, stream, strict=True), key=lambda pair: pair[0]):
        document = [token for _, token in group]
        assert tokenizer.eos_id not in document[:-1]
        texts.append(tokenizer.decode(document))
    return texts


def files_source(path: Path, **settings: str) -> SourceConfig:
    return SourceConfig(files=FilesSource(path=str(path), **settings))


def test_the_sequences_spell_every_document_of_the_source_once(
    config_for: Make, documents: list[str]
) -> None:
    folder = prepare(config_for())
    found = [documents_in(folder, split) for split in ("train", "valid")]
    assert sum(len(texts) for texts in found) == len(documents)
    for texts in found:
        *whole, last = texts
        assert set(whole) < set(documents)
        assert sum(document.startswith(last) for document in documents) == 1
        starts = [documents.index(text) for text in whole]
        assert starts == sorted(starts)


def test_no_document_is_in_both_splits_even_when_it_occurs_twice(
    config_for: Make, corpus: Path, documents: list[str]
) -> None:
    for path in list(corpus.iterdir()):
        shutil.copy(path, corpus / f"copy_{path.name}")
    folder = prepare(config_for())
    train, valid = (set(documents_in(folder, split)[:-1]) for split in ("train", "valid"))
    assert train
    assert valid
    assert not train & valid


def test_the_split_depends_on_the_document_and_the_seed_not_on_its_place(
    config_for: Make, corpus: Path
) -> None:
    before = set(documents_in(prepare(config_for()), "valid")[:-1])
    (corpus / "059.txt").rename(corpus / "000a.txt")
    moved = set(documents_in(prepare(config_for()), "valid"))
    reseeded = set(documents_in(prepare(config_for(seed=1)), "valid"))
    assert len(before & moved) >= len(before) - 1
    assert len(before & reseeded) < len(before)


def test_the_summary_counts_what_is_there(config_for: Make, documents: list[str]) -> None:
    folder = prepare(config_for())
    summary = read_prepared(folder)
    assert json.loads((folder / "prepared.json").read_text())["fingerprint"] == folder.name
    assert (summary.fingerprint, summary.vocab_size, summary.seq_len) == (folder.name, 300, 16)
    assert summary.train.documents + summary.valid.documents == len(documents)
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokens = sum(len(tokenizer.encode(document)) + 1 for document in documents)
    assert summary.train.tokens + summary.valid.tokens == tokens
    for split in ("train", "valid"):
        size = getattr(summary, split)
        assert size.sequences == len(open_split(folder, split)) == (size.tokens - 1) // 16


def test_preparing_again_reuses_what_is_there(config_for: Make) -> None:
    folder = prepare(config_for())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepare(config_for(cross_document_attention=False, num_processes=2)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_same_source_gives_the_same_bytes_on_any_number_of_processes(
    config_for: Make, tmp_path: Path
) -> None:
    one = prepare(config_for(cache_folder=str(tmp_path / "one")))
    two = prepare(config_for(cache_folder=str(tmp_path / "two"), num_processes=2))
    assert contents(one) == contents(two)
    assert one.name == two.name


def test_a_changed_file_or_setting_is_prepared_anew(config_for: Make, corpus: Path) -> None:
    folders = [prepare(config_for()), prepare(config_for(seq_len=8))]
    folders += [prepare(config_for(seed=1)), prepare(config_for(valid_fraction=0.3))]
    trained = TokenizerConfig(sentencepiece=SentencePieceConfig(vocab_size=310))
    folders.append(prepare(config_for(tokenizer=trained)))
    os.utime(corpus / "000.txt", ns=(0, 0))
    folders.append(prepare(config_for()))
    assert len(set(folders)) == 6


def test_a_given_tokenizer_is_used_and_its_content_counts(config_for: Make, tmp_path: Path) -> None:
    first = prepare(config_for())
    moved = shutil.copytree(first / "tokenizer", tmp_path / "moved")
    given = prepare(config_for(tokenizer=TokenizerConfig(path=str(first / "tokenizer"))))
    again = prepare(config_for(tokenizer=TokenizerConfig(path=str(moved))))
    assert first != given == again
    assert (given / "train.arrow").read_bytes() == (first / "train.arrow").read_bytes()
    assert contents(given / "tokenizer") == contents(first / "tokenizer")


def test_rows_without_text_are_left_out_and_counted(config_for: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text}) for text in ["", "hello world " * 30, "", "bye " * 90]]
    path.write_text("\n".join(rows))
    tokenizer = TokenizerConfig(sentencepiece=SentencePieceConfig(vocab_size=275))
    config = config_for(source=files_source(path), valid_fraction=0.0, tokenizer=tokenizer)
    summary = read_prepared(prepare(config))
    assert (summary.empty_documents, summary.train.documents) == (2, 2)
    assert summary.valid.documents == summary.valid.sequences == 0


def test_two_processes_that_prepare_the_same_data_agree(config_for: Make) -> None:
    config = config_for()
    found = run_ranks(lambda: str(prepare(config)), world=2, group=False)
    assert found[0] == found[1]
    cache = Path(config.cache_folder)
    assert [path.name for path in cache.iterdir()] == [read_prepared(found[0]).fingerprint]
    assert len(documents_in(Path(found[0]), "train")) > 1


def test_a_process_that_is_late_keeps_what_the_first_one_published(
    config_for: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = prepare(config_for(cache_folder=str(tmp_path / "elsewhere")))
    config = config_for()
    rename = Path.rename

    def publish_after_another(path: Path, target: Path) -> Path:
        shutil.copytree(elsewhere, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", publish_after_another)
    folder = prepare(config)
    assert contents(folder) == contents(elsewhere)
    assert list(Path(config.cache_folder).iterdir()) == [folder]


def test_nothing_is_left_behind_by_a_preparation_that_fails(config_for: Make, corpus: Path) -> None:
    (corpus / "zzz.txt").write_bytes(b"\xff")
    config = config_for()
    with pytest.raises(ValueError, match=r"zzz.txt is not UTF-8"):
        prepare(config)
    assert list(Path(config.cache_folder).iterdir()) == []


def test_a_damaged_folder_is_named_and_not_overwritten(config_for: Make) -> None:
    folder = prepare(config_for())
    (folder / "prepared.json").unlink()
    before = contents(folder)
    with pytest.raises(RuntimeError, match=rf"{folder.name} has no prepared.json"):
        prepare(config_for())
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 100_000}, "data.seq_len 100000 is too large: the .* documents of the train"),
        (
            {"seq_len": 3000, "valid_fraction": 0.05},
            "data.seq_len 3000 is too large: the .* documents of the valid split",
        ),
        ({"valid_fraction": 1e-6}, "data.valid_fraction 1e-06 leaves no document for the valid"),
        ({"valid_fraction": 0.999999}, "no document with text is left to train on: lower"),
        (
            {"tokenizer": TokenizerConfig(sentencepiece=SentencePieceConfig(vocab_size=90_000))},
            "vocab_size 90000 is too large for the text: give at most",
        ),
        ({"tokenizer": TokenizerConfig(path="nowhere.model")}, "tokenizer nowhere.model"),
    ],
)
def test_settings_that_do_not_fit_the_text_are_refused_in_one_line(
    config_for: Make, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        prepare(config_for(**changes))
    assert "\n" not in str(caught.value)


def test_a_source_with_nothing_but_empty_rows_is_refused(config_for: Make, tmp_path: Path) -> None:
    path, model = tmp_path / "rows.jsonl", prepare(config_for()) / "tokenizer"
    tokenizer = TokenizerConfig(path=str(model))
    for content, message in (
        ('{"text": ""}\n', "only documents without text"),
        ("\n", "has no documents"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"data.source {message}|{message}.*rows.jsonl"):
            prepare(config_for(source=files_source(path), tokenizer=tokenizer))


def test_a_training_split_without_documents_is_refused(config_for: Make) -> None:
    tokenizer = TokenizerConfig(path=str(prepare(config_for()) / "tokenizer"))
    message = "data.valid_fraction 0.999999 leaves no document for the train split: lower it"
    with pytest.raises(ValueError, match=message):
        prepare(config_for(tokenizer=tokenizer, valid_fraction=0.999999))


def test_what_is_not_prepared_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not prepared data"):
        read_prepared(tmp_path)
