from pathlib import Path

import pytest

from slurm.settings import folder_name, read_settings


def settings(folder: Path, text: str) -> list[list[str]]:
    (folder / "s.txt").write_text(text)
    return read_settings(folder / "s.txt")


def test_a_line_is_a_run_and_comments_and_empty_lines_are_none(tmp_path: Path) -> None:
    text = "# the learning rate\noptim.lr=1e-3 seed=1\n\n  # more\nseed=2\n"
    assert settings(tmp_path, text) == [["optim.lr=1e-3", "seed=1"], ["seed=2"]]


def test_braces_make_all_combinations_the_last_changing_fastest(tmp_path: Path) -> None:
    assert settings(tmp_path, "a={1,2} b=x c={3, 4}\n".replace(", ", ",")) == [
        ["a=1", "b=x", "c=3"],
        ["a=1", "b=x", "c=4"],
        ["a=2", "b=x", "c=3"],
        ["a=2", "b=x", "c=4"],
    ]


def test_lists_mappings_and_quoted_values_are_single_values(tmp_path: Path) -> None:
    text = """a=[1,2] b={stdlib:{max_megabytes:1}} 'c=two words'\n"""
    assert settings(tmp_path, text) == [
        ["a=[1,2]", "b={stdlib:{max_megabytes:1}}", "c=two words"],
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed=1\nseed 2\n", "line 2: 'seed' is not an override"),
        ("a='b\n", "line 1: No closing quotation"),
        ("run_folder=x\n", "line 1: each run has a folder of its own"),
        ("# nothing\n", "holds no setting"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of settings .*none\.txt"):
        read_settings(tmp_path / "none.txt")


def test_a_folder_is_named_after_its_number_and_overrides() -> None:
    assert folder_name(7, ["optim.lr=1e-3", "a=[1,2]"]) == "007-optim.lr=1e-3_a=_1_2_"
    assert "/" not in folder_name(0, ["data.source.files.path=../x/y"])
    assert len(folder_name(0, ["a=" + "x" * 300])) == 100
