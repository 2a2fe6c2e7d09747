"""Figures of a generation or a comparison, as JSON values and as a table for people."""

from collections.abc import Sequence
from typing import Any

from inference.bench import (
    Comparison,
    Measurement,
    accept_histogram,
    acceptance_rate,
    tokens_per_second,
)
from inference.generation import Generation


def figures(generation: Generation) -> dict[str, Any]:
    """Return the figures of one generation; rates are None where there was nothing to measure."""
    return {
        "token_ids": generation.token_ids,
        "acceptance_rate": acceptance_rate([generation]),
        "tokens_per_second": tokens_per_second([generation]),
        "seconds_prefill": generation.seconds_prefill,
        "seconds_decode": generation.seconds_decode,
        "rounds": len(generation.rounds),
        "accept_histogram": accept_histogram([generation]),
    }


def comparison_figures(comparison: Comparison, strategy: str, *, is_greedy: bool) -> dict[str, Any]:
    """Return the figures of a comparison; the rows are named by their strategies."""
    return {
        "autoregressive": _row_figures(comparison.baseline),
        strategy: _row_figures(comparison.candidate),
        "speedup": comparison.speedup,
        "same_output": comparison.is_same_output if is_greedy else None,
        "prompts": len(comparison.baseline.generations),
        "repeats": len(comparison.baseline.repeats),
    }


def _row_figures(measured: Measurement) -> dict[str, Any]:
    return {
        "tokens": sum(len(each.token_ids) for each in measured.generations),
        "tokens_per_second": measured.tokens_per_second,
        "seconds_prefill": measured.seconds_prefill,
        "acceptance_rate": acceptance_rate(measured.generations),
        "accept_histogram": accept_histogram(measured.generations),
    }


def comparison_table(comparison: Comparison, label: str, *, is_greedy: bool) -> str:
    """Return both rows and the speedup as lines of text; `label` names the candidate."""
    base, ours = comparison.baseline, comparison.candidate
    rows = [
        ("strategy", "tokens", "tokens/s", "prefill s", "acceptance", "speedup"),
        _cells("autoregressive", base, 1.0 if base.tokens_per_second else None),
        _cells(label, ours, comparison.speedup),
    ]
    lines = table_lines(rows)
    counts = accept_histogram(ours.generations)
    if counts:
        lines.append("rounds that accepted 0, 1, 2, ... drafts: " + " ".join(map(str, counts)))
    same = "the same tokens" if comparison.is_same_output else "other tokens than autoregressive"
    lines.append(
        f"prompts: {len(base.generations)}, medians of {len(base.repeats)} interleaved runs; "
        + (same if is_greedy else "sampled, so the tokens differ")
    )
    return "\n".join(lines) + "\n"


def _cells(name: str, measured: Measurement, speedup: float | None) -> tuple[str, ...]:
    return (
        name,
        str(sum(len(each.token_ids) for each in measured.generations)),
        _number(measured.tokens_per_second, ".1f"),
        _number(measured.seconds_prefill, ".3f"),
        _number(acceptance_rate(measured.generations), ".3f"),
        _number(speedup, ".2f", "x"),
    )


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line of text for each row, the cells of a column under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths) for row in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest])


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def one_line(generation: Generation) -> str:
    """Return what there is to say after a streamed text."""
    parts = [
        f"{len(generation.token_ids)} tokens",
        f"{_number(tokens_per_second([generation]), '.1f')} tokens/s",
        f"prefill {generation.seconds_prefill:.3f} s",
    ]
    rate = acceptance_rate([generation])
    if rate is not None:
        parts.append(f"{rate:.1%} of drafts accepted in {len(generation.rounds)} rounds")
    return ", ".join(parts)
