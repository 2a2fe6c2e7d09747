import shutil
from pathlib import Path

import pytest

from inference.card.gather import find_tuned, front_matter, gather, is_hub_id
from inference.tuned import FILE


def test_a_hub_id_is_no_folder_that_is_or_was_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id("owner/name-1.5B")
    assert not is_hub_id("runs/gone")
    assert not is_hub_id("llama_1.5b")
    assert not is_hub_id(str(tmp_path / "gone"))
    assert not is_hub_id("a/b/c")


def test_a_folder_is_described_by_what_it_is(exported: Path) -> None:
    found = gather(str(exported), Path("out"), dtype="bfloat16")
    assert found.source == exported.name
    assert found.folder == "out"
    assert found.model.num_hidden_layers == 4
    assert (found.run, found.tuned, found.license, found.base_model) == (None, None, None, None)


@pytest.mark.parametrize(
    ("start", "base_model"), [("owner/name", "owner/name"), ("/gone/name", None), (None, None)]
)
def test_a_run_from_the_hub_names_its_base(
    exported: Path, tmp_path: Path, start: str | None, base_model: str | None
) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(exported / "config.json", tmp_path / "model")
    (tmp_path / "state.json").write_text('{"step": 3}')
    (tmp_path / "config.yaml").write_text(f"init_from: {start or 'null'}\n")
    found = gather(str(tmp_path), Path("out"), dtype="float32")
    assert found.base_model == base_model
    assert found.run is not None
    assert found.run.step == 3


def test_the_license_is_that_of_the_card_there_unless_one_is_given(exported: Path) -> None:
    card = exported / "README.md"
    card.write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    try:
        assert gather(str(exported), Path("out"), dtype="float32").license == "apache-2.0"
        found = gather(str(exported), Path("out"), dtype="float32", license="mit")
        assert found.license == "mit"
    finally:
        card.unlink()


@pytest.mark.parametrize(
    "text", ["", "# x", "---\n- a\n---\n", "---\n{a: [\n---\n", f"---\nx: {'[' * 9999}\n---\n"]
)
def test_a_card_without_readable_front_matter_says_nothing(tmp_path: Path, text: str) -> None:
    card = tmp_path / "README.md"
    card.write_text(text)
    assert front_matter(card) == {}
    assert front_matter(tmp_path / "none.md") == {}


def test_settings_that_cannot_be_read_are_named_and_left_out(
    exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (exported / FILE).write_text("{}")
    try:
        assert find_tuned(str(exported)) is None
    finally:
        (exported / FILE).unlink()
    assert "the card will name no decoding settings" in caplog.text
