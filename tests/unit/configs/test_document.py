import pytest
from yaml import YAMLError

from configs.document import find_fault, is_too_deep


@pytest.mark.parametrize("text", ["", "# nothing", "a: 1", "---\na: {b: [1, 2]}\n", "? [1]\n: 2"])
def test_keys_and_values_or_nothing_are_a_document(text: str) -> None:
    assert find_fault(text) is None


@pytest.mark.parametrize(
    ("text", "found"), [("07", "07"), ("- 1", "a list"), ("-.inf", "-.inf"), ("a b\n", "a b")]
)
def test_what_holds_something_else_is_said(text: str, found: str) -> None:
    assert find_fault(text) == f"must hold keys and values, not {found}"


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 200 + "x"])
def test_nesting_without_end_is_refused_before_it_is_read(text: str) -> None:
    assert is_too_deep(text)
    assert "nested more than" in (find_fault(text) or "")


def test_what_is_no_yaml_is_yamls_error() -> None:
    with pytest.raises(YAMLError):
        find_fault("a: [")
