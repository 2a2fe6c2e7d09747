import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from configs.command import ROOT
from data_pipelines.read_ahead import read_ahead, start_workers

LEAVING = """
import itertools, time
from data_pipelines.read_ahead import read_ahead, start_workers

def slow():
    for number in itertools.count():
        time.sleep(0.3)
        yield number

submit = start_workers(1)
lanes = [read_ahead(slow(), submit) for _ in range(50)]
print(next(lanes[0]))
for _ in range(50):
    submit(slow().__next__)
"""


def test_the_items_are_those_of_the_iterator_and_the_next_one_is_made_ahead() -> None:
    second = threading.Event()

    def numbers() -> Iterator[int]:
        yield 0
        second.set()
        yield from itertools.count(1)

    ahead = read_ahead(numbers(), start_workers(1))
    assert next(ahead) == 0
    assert second.wait(10)
    assert list(itertools.islice(ahead, 3)) == [1, 2, 3]


def test_what_goes_wrong_is_raised_where_it_is_wanted() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise ValueError("row 7 is broken")

    ahead = read_ahead(broken(), start_workers(2))
    assert next(ahead) == 0
    with pytest.raises(ValueError, match="row 7 is broken"):
        next(ahead)


def test_the_threads_end_with_the_last_who_could_give_them_a_job() -> None:
    before = threading.active_count()
    submit = start_workers(3)
    ahead = read_ahead(itertools.count(), submit)
    assert next(ahead) == 0
    del submit
    assert threading.active_count() == before + 3
    del ahead
    assert threading.active_count() == before


def test_a_process_ends_without_the_jobs_that_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], cwd=ROOT, capture_output=True, text=True, timeout=12
    )  # all fifty jobs would take 15 seconds
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
