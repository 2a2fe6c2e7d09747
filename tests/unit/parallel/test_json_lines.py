import json
import math
import resource
from pathlib import Path

import pytest

from parallel.json_lines import append_line


def test_what_json_has_no_number_for_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with path.open("ab", buffering=0) as file:
        append_line(file, path, {"step": 1, "deep": {"exits": [1.5, math.inf, {"e": math.nan}]}})
        append_line(file, path, {"step": 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "deep": {"exits": [1.5, None, {"e": None}]}}, {"step": 2}]


def test_nothing_remains_of_a_line_for_which_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("ab", buffering=0) as file:
        append_line(file, path, {"step": 1})
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
        try:
            with pytest.raises(OSError, match=r"No space left.*lines\.jsonl"):
                append_line(file, path, {"step": 2, "text": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole
        append_line(file, path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
