"""What `bench` found as a table: a line for each figure, a column for each way of decoding."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.report import table_lines

Figures = Mapping[str, Any]
Cell = Callable[[Any], str]


def interval(value: Any, form: str = ".1f", unit: str = "") -> str:
    """Return a figure and, if it has any, its interval."""
    if value is None:
        return "-"
    middle, low, high = (f"{value[name]:{form}}" for name in ("value", "low", "high"))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low}-{high})"


def milliseconds(value: Any) -> str:
    """Return seconds at two percentiles as milliseconds."""
    return "-" if value is None else f"{1e3 * value['p50']:.1f} / {1e3 * value['p95']:.1f}"


ROWS: tuple[tuple[str, str, Cell], ...] = (
    ("tokens", "tokens", str),
    ("tokens/s", "tokens_per_second", interval),
    ("speedup", "speedup", lambda value: interval(value, ".2f", "x")),
    ("ms to first token, p50 / p95", "seconds_to_first_token", milliseconds),
    ("ms per token, p50 / p95", "seconds_per_token", milliseconds),
    ("acceptance", "acceptance", lambda value: interval(value, ".3f")),
    (
        "acceptance of the first 1, 2, ... drafts",
        "acceptance_by_position",
        lambda value: " ".join(f"{share:.2f}" for share in value) or "-",
    ),
    ("peak memory, MiB", "peak_memory_bytes", lambda value: f"{value / 2**20:.0f}"),
    ("ROUGE-1", "rouge1", lambda value: f"{value:.3f}"),
    ("ROUGE-2", "rouge2", lambda value: f"{value:.3f}"),
    ("ROUGE-L", "rougeL", lambda value: f"{value:.3f}"),
    ("exact match", "exact_match", lambda value: f"{value:.3f}"),
)


def bench_table(columns: Mapping[str, Figures]) -> list[str]:
    """Return the lines of the table; figures that no column has are left out."""
    rows: list[Sequence[str]] = [("", *columns)]
    for title, name, cell in ROWS:
        values = [figures.get(name) for figures in columns.values()]
        if any(value not in (None, []) for value in values):
            rows.append((title, *("-" if value is None else cell(value) for value in values)))
    return table_lines(rows)
