import os
import shutil
from pathlib import Path

import pytest
import torch

from models.plan import dropped, full
from tests.disks import small_disk
from trainer.failures import FailureFile, plan_line


def test_a_plan_is_one_line_of_layers_rows_and_exits() -> None:
    rows = torch.tensor([0, 2])
    nobody = torch.tensor([], dtype=torch.long)
    assert plan_line(full(3)) == "layers 0 1 2; exits 3"
    plan = dropped([None, rows, nobody, None], exits=(2, 4))
    assert plan_line(plan) == "layers 0 1(2 rows) 3; exits 2 4"


def test_a_report_says_why_what_with_which_plan_and_where(tmp_path: Path) -> None:
    file = FailureFile(tmp_path, 0, 1)
    file.write("it\nbroke", "step 7", [full(2)], ValueError("it broke"))
    file.close()
    text = (tmp_path / "failures" / "rank-0.txt").read_text()
    assert f"rank 0 of 1 on {os.uname().nodename}, process {os.getpid()}\n" in text
    assert "\nreason: it broke\ndoing: step 7\n" in text
    assert "\nplan of microbatch 0 of this rank: layers 0 1; exits 2\n" in text
    assert "\nValueError: it broke\n" in text
    assert "in test_a_report_says_why_what_with_which_plan_and_where" in text


def test_a_file_that_nothing_was_written_to_goes_away_with_its_folder(tmp_path: Path) -> None:
    files = [FailureFile(tmp_path, rank, 2) for rank in range(2)]
    files[0].close()
    assert (tmp_path / "failures" / "rank-1.txt").exists()
    files[1].close()
    assert not (tmp_path / "failures").exists()


def test_the_report_of_the_time_before_is_kept_and_not_taken_for_one_of_now(tmp_path: Path) -> None:
    for reason in ("first", "second"):
        file = FailureFile(tmp_path, 1, 2)
        file.write(reason, "step 1", [])
        file.close()
    folder = tmp_path / "failures"
    assert "reason: first" in (folder / "rank-1.previous.txt").read_text()
    assert "reason: second" in (folder / "rank-1.txt").read_text()
    FailureFile(tmp_path, 1, 2)
    survivor = FailureFile(tmp_path, 0, 2)
    survivor.write("alone", "step 2", [])
    assert survivor.others(0.0).startswith("rank 1 left no report")


def test_the_rank_that_failed_first_is_quoted(tmp_path: Path) -> None:
    first, second = (FailureFile(tmp_path, rank, 2) for rank in range(2))
    first.write("a disk is broken", "step 3", [])
    second.write("nobody answers", "step 3", [])
    assert second.others(1.0) == "rank 0 failed first: a disk is broken"
    assert first.others(1.0) == "every other rank left a report, none before this one"
    assert second.others(1.0) == "rank 0 failed first: a disk is broken"


def test_a_report_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    file = FailureFile(tmp_path, 0, 1)
    with Path("/dev/full").open("wb", buffering=0) as full_disk:
        file.file = full_disk
        file.write("the real reason", "step 1", [])
        assert file.others(0.0) == "there is no other rank"
        file.close()


def test_a_run_folder_that_is_gone_hides_nothing(tmp_path: Path) -> None:
    file = FailureFile(tmp_path / "run", 0, 2)
    shutil.rmtree(tmp_path / "run")
    file.write("the loss is nan", "step 8", [full(2)])
    assert file.others(0.0).startswith("rank 1 left no report")
    file.close()


def test_a_report_has_room_where_nothing_else_has(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        file = FailureFile(disk, 0, 1)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free))
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"x")
        file.write("the disk is full", "step 7", [full(2)], ValueError("no room"))
        file.close()
        text = (disk / "failures" / "rank-0.txt").read_text()
    assert "reason: the disk is full" in text
    assert "in test_a_report_has_room_where_nothing_else_has" in text
