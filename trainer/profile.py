"""`profile=true`: a trace of a few steps with named ranges, and a table of where their time went.

The trace is the JSON of Chrome's trace viewer, which ui.perfetto.dev opens.
"""

import gzip
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile, schedule

from models.ranges import BACKWARD, named

T = TypeVar("T")

WAIT, WARMUP, ACTIVE = 2, 1, 3
"""Steps that are left alone, that warm the profiler up, and that are traced."""
STEPS = WAIT + WARMUP + ACTIVE
FOLDER = "profile"
"""In the run folder."""
STEP_RANGE = "ProfilerStep*"
"""How torch's profiler names the range of a whole step."""

_OF_ONE_LAYER = re.compile(r"(FSDP::\w+)( \(| for ).*")
"""FSDP names many ranges after each of its units; the table adds them up."""

logger = logging.getLogger(__name__)


@contextmanager
def profiled(run_folder: Path, rank: int, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """Trace this rank while the context is open; yield what to call at the end of each step."""
    if not enabled:
        yield lambda: None
        return
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    with profile(
        schedule=schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
        on_trace_ready=lambda ready: _write(ready, folder, rank),
    ) as profiler:
        yield profiler.step


def each_named(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yield the items, showing the wait for each as a range."""
    iterator = iter(items)
    while True:
        with named(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _write(profiler: profile, folder: Path, rank: int) -> None:
    """Write the rank's trace and its table."""
    path = folder / f"rank{rank}.pt.trace.json.gz"  # as TensorBoard's profiler plugin wants it
    raw = folder / f"rank{rank}.raw.json"
    profiler.export_chrome_trace(str(raw))
    trace = json.loads(raw.read_text())
    on_own_track(trace["traceEvents"])
    with gzip.open(path, "wt", compresslevel=3) as file:
        json.dump(trace, file)
    raw.unlink()
    events: list[FunctionEvent] = profiler.events() or []  # type: ignore[no-untyped-call]
    (folder / f"rank{rank}.txt").write_text(summary(events))
    logger.info("wrote %s: open it at ui.perfetto.dev; rank%d.txt beside it sums it up", path, rank)


def on_own_track(events: list[dict[str, Any]]) -> None:
    """Move the layers' backward ranges to a track of their own, beside the thread that ran them.

    They begin and end inside operators of autograd, and Perfetto drops what overlaps without being
    nested.
    """
    tracks: dict[tuple[Any, Any], dict[str, Any]] = {}
    for event in events:
        if event.get("name", "").startswith(BACKWARD) and event.get("cat") == "user_annotation":
            process, thread = event["pid"], event["tid"]
            event["tid"] = f"{thread} backward"
            tracks[process, thread] = {
                "name": "thread_name",
                "ph": "M",
                "pid": process,
                "tid": event["tid"],
                "args": {"name": "backward pass by layer"},
            }
    events += tracks.values()


def summary(events: Iterable[FunctionEvent]) -> str:
    """Return two tables of a trace's events: named ranges, and operators by their own time.

    A range has in it the ranges that were opened while it was open. Times are of the host; those of
    an accelerator, where there is one, are of the kernels that the host started meanwhile.
    """
    ranges: dict[str, list[tuple[float, float]]] = {}
    operators: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.is_user_annotation:
            name = "step" if event.name == STEP_RANGE else _OF_ONE_LAYER.sub(r"\1", event.name)
            times = (event.cpu_time_total, event.device_time_total)
            ranges.setdefault(name, []).append(times)
        else:
            times = (event.self_cpu_time_total, event.self_device_time_total)
            operators.setdefault(event.name, []).append(times)
    steps = ranges.get("step", [])
    if not steps:
        return "no whole step was traced\n"
    tables = (("range", ranges, len(ranges)), ("operator, without those it calls", operators, 20))
    return "\n".join(_table(title, rows, steps, most) for title, rows, most in tables)


def _table(
    title: str,
    rows: dict[str, list[tuple[float, float]]],
    steps: list[tuple[float, float]],
    most: int,
) -> str:
    """Return the rows with the most time, of host and accelerator together, each a step's mean."""
    total = sum(host for host, _ in steps)
    sums = {name: tuple(map(sum, zip(*times, strict=True))) for name, times in rows.items()}
    lines = [f"{'times':>8} {'ms':>10} {'share':>7} {'device ms':>10}  {title}, a step"]
    for name in sorted(sums, key=lambda name: -sum(sums[name]))[:most]:
        host, device = (value / len(steps) / 1000 for value in sums[name])
        count = len(rows[name]) / len(steps)
        share = sums[name][0] / total
        lines.append(f"{count:8.1f} {host:10.2f} {share:7.1%} {device:10.2f}  {name}")
    return "\n".join(lines) + "\n"
