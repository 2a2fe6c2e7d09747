"""How a benchmark speaks: a table for people, and JSON lines that say where they come from."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from benchmarks.report import hardware, versions
from configs.command import ROOT


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table whose columns are aligned; floats have three digits that matter."""
    cells = [list(columns), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def spread_cell(spread: Mapping[str, float] | None) -> str:
    """Return a median with its quartiles, as `benchmarks.timing.Spread` has them; - for none."""
    if spread is None:
        return "-"
    return f"{spread['value']:.2f} ({spread['low']:.2f}-{spread['high']:.2f})"


def json_line(benchmark: str, **figures: Any) -> str:
    """Return one JSON object: the benchmark's name, its figures, and what they were measured on."""
    return json.dumps({"benchmark": benchmark} | figures | {"from": _provenance()})


@cache
def _provenance() -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }
