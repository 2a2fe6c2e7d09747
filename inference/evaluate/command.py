"""The command `eval`: tasks of lm-evaluation-harness at any exit, verified or not."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from configs.load import load
from inference.evaluate.config import EvalConfig
from inference.evaluate.harness import evaluate, find_tasks
from inference.load import Loaded
from inference.opening import Open
from inference.report import table_lines

KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""Of what lm-eval returns: all that are plain figures."""


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Run the tasks that the command line names.

    Raises:
        ValueError: if a key or task is unknown; the model has not been loaded then.
        RuntimeError: if lm-eval is not installed, or data cannot be had.
    """
    config = load(EvalConfig, None, overrides)
    manager = find_tasks(config)
    eval_model(config, open_model(model, config), manager, sys.stdout)


def eval_model(config: EvalConfig, loaded: Loaded, manager: Any, out: TextIO) -> None:
    """Run the tasks, and write what was found to `out`.

    Raises:
        ValueError: if the model has no such exit, or a task wants what it cannot do.
    """
    found = evaluate(config, loaded, manager)
    values = {
        "model": loaded.origin,
        "exit_layer": config.exit_layer,
        "verified": config.verified,
        "dtype": config.dtype,
        **{name: found[name] for name in KEPT if name in found},
    }
    text = json.dumps(values, default=str)
    if config.to is not None:
        Path(config.to).parent.mkdir(parents=True, exist_ok=True)
        Path(config.to).write_text(text + "\n", encoding="utf-8")
    if config.output == "json":
        out.write(text + "\n")
        return
    out.writelines(line + "\n" for line in eval_table(found["results"]))
    out.write(_origin(config) + "\n")


def eval_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table: a row for each metric of each task, with its standard error.

    Args:
        results: by task; metrics are named `metric,filter`, errors `metric_stderr,filter`.
    """
    rows = [("task", "metric", "filter", "value", "standard error")]
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, kind = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            rows.append((task, metric, kind, _number(value), _number(error)))
    return table_lines(rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "-"


def _origin(config: EvalConfig) -> str:
    if config.exit_layer is None:
        return f"the full model, {config.dtype}"
    if config.verified:
        return (
            f"exit {config.exit_layer} drafts {config.speculations} tokens, the full model "
            f"verifies, {config.dtype}"
        )
    return f"exit {config.exit_layer}, nothing verified, {config.dtype}"
