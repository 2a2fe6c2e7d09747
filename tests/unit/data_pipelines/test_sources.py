import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.config import FilesSource, HubSource, SourceConfig, StdlibSource
from data_pipelines.sources import open_source, source_identity


def files(path: Path) -> SourceConfig:
    return SourceConfig(files=FilesSource(path=str(path)))


def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["a", "b"], "n": [1, 2]}), folder / "train.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf_cache")


def test_files_become_one_column_of_text(
    tmp_path: Path, corpus: Path, documents: list[str]
) -> None:
    dataset = open_source(files(corpus), tmp_path)
    assert dataset.column_names == ["text"]
    assert list(dataset["text"]) == documents


def test_the_standard_library_comes_without_its_tests_and_up_to_a_size(tmp_path: Path) -> None:
    dataset = open_source(SourceConfig(stdlib=StdlibSource(max_megabytes=0.5)), tmp_path)
    texts = list(dataset["text"])
    assert (Path(sysconfig.get_path("stdlib")) / "__future__.py").read_text() in texts
    assert 0.3e6 < sum(len(text.encode()) for text in texts) <= 0.5e6
    assert all(texts)


def test_the_whole_standard_library_is_several_megabytes_and_always_the_same() -> None:
    _, sizes = source_identity(SourceConfig(stdlib=StdlibSource()))["stdlib"]
    assert sum(size for _, size in sizes) > 5e6
    assert not any("site-packages" in name or "idle_test" in name for name, _ in sizes)
    assert source_identity(SourceConfig(stdlib=StdlibSource()))["stdlib"][1] == sizes


def test_a_column_of_a_hub_dataset_becomes_the_text(tmp_path: Path) -> None:
    hub = HubSource(name=str(hub_folder(tmp_path)), column="body")
    assert list(open_source(SourceConfig(hub=hub), tmp_path)["text"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data.source.hub.column 'text' is not a column of text .*\(it has body, n\)"),
        ({"column": "n"}, "data.source.hub.column 'n' is not a column of text"),
        ({"split": "dev"}, "data.source.hub.name .*/hub' cannot be loaded: .*dev"),
        ({"config": "other"}, "data.source.hub.name .*/hub' cannot be loaded: .*other"),
        ({"name": "nowhere/at/all"}, "data.source.hub.name .*nowhere.* cannot be loaded"),
    ],
)
def test_a_hub_dataset_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    hub = HubSource(**({"name": str(hub_folder(tmp_path))} | settings))
    with pytest.raises(ValueError, match=message) as caught:
        open_source(SourceConfig(hub=hub), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_identity_of_files_changes_with_what_is_in_them(corpus: Path) -> None:
    before = source_identity(files(corpus))
    assert source_identity(files(corpus)) == before
    os.utime(corpus / "000.txt", ns=(0, 0))
    touched = source_identity(files(corpus))
    (corpus / "new.txt").write_text("x")
    assert before != touched != source_identity(files(corpus)) != before


def test_the_identity_of_a_local_hub_folder_changes_with_its_files(tmp_path: Path) -> None:
    source = SourceConfig(hub=HubSource(name=str(hub_folder(tmp_path))))
    before = source_identity(source)
    os.utime(tmp_path / "hub" / "train.parquet", ns=(0, 0))
    assert source_identity(source) != before
