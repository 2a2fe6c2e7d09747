import pytest

from inference.stop import StopStrings, check_stop, first_stop, may_continue


@pytest.mark.parametrize(
    ("text", "strings", "start", "place"),
    [
        ("one two one", ["one"], 0, 0),
        ("one two one", ["one"], 1, 8),
        ("one two one", ["two", "ne t"], 0, 1),
        ("one two one", ["three"], 0, None),
        ("one two one", [], 0, None),
        ("one\n\ndef", ["def", "\n\n"], 0, 3),
    ],
)
def test_the_first_of_all_strings_is_found(
    text: str, strings: list[str], start: int, place: int | None
) -> None:
    assert first_stop(text, strings, start) == place


@pytest.mark.parametrize(
    ("text", "strings", "length"),
    [("abc", ["cd"], 1), ("abc", ["bcd", "cx"], 2), ("aa", ["aaa"], 2), ("abc", ["abc"], 0)],
)
def test_an_end_that_may_begin_a_string_is_held_back(
    text: str, strings: list[str], length: int
) -> None:
    assert may_continue(text, strings) == length


@pytest.mark.parametrize("strings", [("",), ("a", "")])
def test_an_empty_string_is_refused_in_one_line(strings: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"has an empty string.*leave it out") as refused:
        StopStrings(strings, str)
    assert "\n" not in str(refused.value)
    check_stop([])
