import json
import os
from pathlib import Path

import pytest

from parallel import evaluated
from parallel.evaluated import FILE_NAME, EvaluationLog, evaluated_steps, outstanding


def write(folder: Path, *steps: int) -> None:
    with EvaluationLog(folder) as log:
        for step in steps:
            log.add(step, {"exits": {"2": {"acceptance": 0.5}}})


def test_what_has_a_line_is_not_outstanding(tmp_path: Path) -> None:
    steps = [30, 10, 20, 45]
    assert outstanding(tmp_path, steps, every=10, last=45) == [10, 20, 30, 45]
    write(tmp_path, 10, 30)
    assert evaluated_steps(tmp_path) == {10, 30}
    assert outstanding(tmp_path, steps, every=10, last=45) == [20, 45]
    assert outstanding(tmp_path, steps, every=20, last=100) == [20]
    assert outstanding(tmp_path, [10, 11], every=None, last=100) == [11]


def test_a_line_that_a_kill_tore_is_cut_off_and_the_others_stay_as_they_were(
    tmp_path: Path,
) -> None:
    write(tmp_path, 10)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 20, "exi')
    assert evaluated_steps(tmp_path) == {10}
    write(tmp_path, 20)
    assert path.read_bytes().startswith(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]


def test_what_is_no_line_of_a_step_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('no\n[]\n{"step": null}\n{"step": 7}\n{}\n')
    assert evaluated_steps(tmp_path) == {7}


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluated, "LOCK_SECONDS", 0.1)
    is_refused = pytest.raises(RuntimeError, match="another process is evaluating")
    with EvaluationLog(tmp_path), is_refused:
        EvaluationLog(tmp_path)
    write(tmp_path, 1)
    assert os.listdir(tmp_path) == [FILE_NAME]
