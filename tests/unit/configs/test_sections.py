from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.help import help_text
from configs.load import load, load_part, to_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of many."""

    weight: float
    """How much."""
    name: str | None = None
    """What it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """Many parts, by name."""

    parts: dict[str, Part] | None = None
    """The parts."""
    size: int = 1
    """How large."""


def test_sections_by_name_are_read_changed_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("parts:\n  a: {weight: 1}\n  b: {weight: 2, name: x}\n")
    config = load(Whole, path, ["parts.a.weight=3", "parts.c.weight=4"])
    assert config.parts == {
        "a": Part(weight=3),
        "b": Part(weight=2, name="x"),
        "c": Part(weight=4),
    }
    path.write_text(to_yaml(config))
    assert load(Whole, path) == config


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("parts:\n  a: {wight: 1}\n", r"unknown key parts.a.wight; did you mean parts.a.weight"),
        ("parts:\n  a: {weight: much}\n", "parts.a.weight must be float, got 'much'"),
        ("parts:\n  a-b: {weight: 1}\n", "parts.a-b: a name has only letters, digits and _"),
        ("parts:\n  a: {name: x}\n", "required key parts.a.weight is missing"),
    ],
)
def test_a_fault_in_a_section_by_name_is_named(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        load(Whole, path)


def test_a_part_of_a_file_is_loaded_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("size: 5\nelse: {x: 1}\n")
    assert load_part(Whole, path, ["size=6"]) == Whole(size=6)


def test_the_help_names_the_keys_of_sections_by_name() -> None:
    assert "parts.NAME.weight: float = required" in help_text(Whole)
