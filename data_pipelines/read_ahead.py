"""Threads that make what will be wanted next."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

Submit = Callable[[Callable[[], Any]], "Future[Any]"]
"""Takes a job, returns its result to come."""
Jobs = queue.SimpleQueue["tuple[Future[Any], Callable[[], Any]]"]
_PATIENCE_SECONDS = 5.0


def start_workers(count: int) -> Submit:
    """Start threads and return what gives them jobs, which are done in order.

    When nobody can give jobs any more, or the process ends, the jobs they are at are finished and
    those that wait are cancelled: a `ThreadPoolExecutor` would do them all first, and a thread that
    is cut off inside a library would abort the process.
    """
    jobs: Jobs = queue.SimpleQueue()
    ended = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(jobs, ended), name=f"documents {n}", daemon=True)
        for n in range(count)
    ]
    for thread in threads:
        thread.start()

    def submit(job: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        jobs.put((future, job))
        return future

    weakref.finalize(submit, _end, jobs, ended, threads)
    return submit


def _work(jobs: Jobs, ended: threading.Event) -> None:
    while True:
        future, job = jobs.get()
        if ended.is_set():
            future.cancel()
            return
        try:
            future.set_result(job())
        except BaseException as error:  # whatever it is, who waits for it has to see it
            future.set_exception(error)


def _end(jobs: Jobs, ended: threading.Event, threads: list[threading.Thread]) -> None:
    ended.set()
    while not jobs.empty():
        jobs.get()[0].cancel()
    for _ in threads:
        jobs.put((Future(), lambda: None))
    for thread in threads:
        if thread is not threading.current_thread():  # whose garbage collection may have come here
            thread.join(_PATIENCE_SECONDS)


def read_ahead(items: Iterator[T], submit: Submit) -> Iterator[T]:
    """Yield the items of an iterator without end, the next of which is made in the background."""
    made = submit(items.__next__)
    while True:
        item: T = made.result()
        made = submit(items.__next__)
        yield item
