import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.config import (
    DataConfig,
    FilesSource,
    MixedSource,
    StdlibSource,
    StreamingConfig,
    num_lanes,
)
from data_pipelines.prepare import read_prepared
from data_pipelines.prepare_sources import prepare_data, source_folders
from data_pipelines.tokenize import load_tokenizer
from tests.streams import data_config, mixed_config, streamed, write_documents


def test_a_mixture_is_prepared_once_and_its_sources_share_a_tokenizer(tmp_path: Path) -> None:
    config = mixed_config(tmp_path)
    folder = prepare_data(config)
    before = {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*") if p.is_file()}
    assert prepare_data(config) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*") if p.is_file()} == before
    models = {
        (path / "tokenizer" / "tokenizer.model").read_bytes()
        for path in [folder, *source_folders(folder).values()]
    }
    assert len(models) == 1
    assert read_prepared(folder).fingerprint == folder.name
    assert read_prepared(folder).vocab_size == load_tokenizer(folder / "tokenizer").vocab_size


def test_changed_files_of_a_stream_are_another_data_set(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    before = prepare_data(config)
    write_documents(tmp_path / "web", files=4, rows=40)
    assert prepare_data(config) != before


def test_of_a_stream_only_what_it_is_validated_on_is_prepared(tmp_path: Path) -> None:
    config = data_config(tmp_path, streaming=StreamingConfig(valid_documents=5))
    prepared = read_prepared(prepare_data(config))
    assert prepared.train.sequences == 0
    assert prepared.valid.documents == 5


def test_a_fault_in_a_mixture_names_its_source(tmp_path: Path) -> None:
    config = mixed_config(tmp_path)
    (tmp_path / "books" / "00.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match=r"no column 'text'.*set data.mixture.books.files.column"):
        prepare_data(config)


def test_a_fault_in_a_stream_is_said_before_a_tokenizer_is_trained_on_it(tmp_path: Path) -> None:
    config = data_config(tmp_path, source=streamed(tmp_path / "web", column="body"))
    with pytest.raises(ValueError, match=r"^source has no column 'body' .it has text.: set its"):
        prepare_data(config)


def test_too_few_held_out_documents_are_an_error_with_remedies(tmp_path: Path) -> None:
    config = data_config(tmp_path, streaming=StreamingConfig(valid_documents=1), seq_len=500)
    with pytest.raises(ValueError, match=r"fill no sequence: raise data.valid_fraction or"):
        prepare_data(config)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_lanes_are_a_divisor_of_the_microbatches(tmp_path: Path) -> None:
    config = data_config(tmp_path, streaming=None)
    assert [num_lanes(config, n) for n in (1, 8, 33, 64, 96)] == [1, 8, 11, 32, 32]
    with pytest.raises(ValueError, match="lanes 3 does not divide the 8 microbatches"):
        num_lanes(replace(config, streaming=StreamingConfig(lanes=3)), 8)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source": None}, "exactly one of source and mixture"),
        (
            {"source": None, "mixture": {"a": MixedSource(weight=1, stdlib=StdlibSource())}},
            "data.mixture has 1 source",
        ),
        (
            {"source": replace(streamed(Path("x")), files=FilesSource(path="x"))},
            "data.streaming has no effect without a source with streaming=true",
        ),
    ],
)
def test_sections_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        data_config(tmp_path, **changes)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_positive(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must be positive"):
        MixedSource(weight=weight, stdlib=StdlibSource())


def test_the_folder_of_a_mixture_says_where_its_sources_are(tmp_path: Path) -> None:
    folder = prepare_data(mixed_config(tmp_path))
    names = json.loads((folder / "sources.json").read_text())
    assert sorted(names) == ["books", "maths", "web"]
    assert all((path / "valid.arrow").is_file() for path in source_folders(folder).values())


def test_a_lone_prepared_source_has_the_folder_it_always_had(tmp_path: Path) -> None:
    config: DataConfig = data_config(tmp_path)
    assert config.source is not None
    assert config.source.files is not None
    files = replace(config.source.files, streaming=False)
    plain = replace(config, source=replace(config.source, files=files), streaming=None)
    assert (prepare_data(plain) / "train.arrow").is_file()
