"""From the files of a training run to what its card says; what is missing or torn is left out."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.load import load_mapping
from inference.card.facts import ExitFigures, RunFacts, Validation
from models.json_file import read_object
from parallel.checkpoint import CHECKPOINTS, STATE

logger = logging.getLogger(__name__)

CONFIG, METRICS, COMMIT, CHANGES, VERSIONS = (
    "config.yaml",
    "metrics.jsonl",
    "commit.txt",
    "diff.patch",
    "versions.json",
)
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def read_run(checkpoint: Path) -> RunFacts | None:
    """Return how a checkpoint was trained; None if it does not say.

    Metrics and commit are those of the run's folder, so a checkpoint that was moved out of it has
    none.
    """
    try:
        config = load_mapping(checkpoint / CONFIG)
        state = read_object(checkpoint / STATE)
    except (OSError, ValueError) as error:
        logger.warning("the card will say nothing of how the model was trained: %s", error)
        return None
    step = state.get("step")
    if not isinstance(step, int):
        return None
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None
    lines = [] if run is None else list(_metrics(run / METRICS, step))
    return RunFacts(
        config=config,
        step=step,
        tokens=_count(state.get("tokens_seen")),
        ranks=_count(state.get("world_size")),
        seconds=_seconds(lines),
        commit=_commit(run),
        is_changed=run is not None and bool(_text(run / CHANGES).strip()),
        versions=_versions(run),
        validation=_validation(lines),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _metrics(path: Path, step: int) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of metrics that are not younger than a step."""
    for row in _text(path).splitlines():
        try:
            line = json.loads(row)
            if line["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a killed run leaves a torn line


def _seconds(lines: list[Mapping[str, Any]]) -> float | None:
    """Return the time of all steps, those between two logged ones taking as long as the later."""
    total, before = 0.0, 0
    for line in lines:
        if line.get("kind") == "train" and isinstance(line.get("step_seconds"), float):
            total += line["step_seconds"] * (line["step"] - before)
            before = line["step"]
    return total or None


def _validation(lines: list[Mapping[str, Any]]) -> Validation | None:
    for line in reversed(lines):
        if line.get("kind") == "valid":
            try:
                return Validation(
                    step=line["step"], tokens=_count(line.get("tokens")), exits=_exits(line)
                )
            except (KeyError, ValueError, TypeError, AttributeError):
                return None
    return None


def _exits(line: Mapping[str, Any]) -> tuple[ExitFigures, ...]:
    """Return the exits of a line; those whose loss was not finite, and null, are left out."""
    agreement = line.get("agreement_per_exit", {})
    return tuple(
        ExitFigures(
            exit_layer=int(e),
            loss=float(loss),
            perplexity=float(line["perplexity_per_exit"][e]),
            agreement=agreement.get(e),
        )
        for e, loss in sorted(line["loss_per_exit"].items(), key=lambda item: int(item[0]))
        if loss is not None
    )


def _commit(run: Path | None) -> str | None:
    text = "" if run is None else _text(run / COMMIT).strip()
    return text if _COMMIT.fullmatch(text) else None


def _versions(run: Path | None) -> Mapping[str, str]:
    if run is None or not (run / VERSIONS).is_file():
        return {}
    try:
        found = read_object(run / VERSIONS)
    except ValueError:
        return {}
    return {name: each for name, each in found.items() if isinstance(each, str)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
