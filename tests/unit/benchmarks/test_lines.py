import json

from benchmarks.lines import json_line, text_table


def test_columns_of_a_table_are_aligned() -> None:
    lines = text_table(["name", "s"], [["a", 1.23456], ["longer", 2]]).splitlines()
    assert lines == [
        "| name   | s    |",
        "|--------|------|",
        "| a      | 1.23 |",
        "| longer | 2    |",
    ]


def test_a_json_line_says_what_it_was_measured_on() -> None:
    line = json.loads(json_line("savings", ratio=0.5))
    assert line["benchmark"] == "savings"
    assert line["ratio"] == 0.5
    assert {"commit", "date", "hardware", "versions"} <= line["from"].keys()
