"""The quickstart's result: as data, as `report.json`, as a table for the console."""

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "datasets", "sentencepiece")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one quickstart measured; the field names are those of `report.json`."""

    perplexity_per_exit: dict[int, float]
    """On the validation split after the last step; exit L is the real output."""
    acceptance_rate: float
    """Drafts accepted over drafts verified, summed over all prompts."""
    tokens_per_second: dict[str, float]
    """New tokens over seconds of decoding (prompts apart) of `autoregressive` and
    `self_speculative`."""
    speedup: float
    """The second over the first."""
    same_tokens: bool
    """Whether both ways gave the same tokens to every prompt."""
    seconds_total: float
    """From the start of `make quickstart`, environment included, to this report."""
    seconds_per_stage: dict[str, float]
    """Wall time of each stage."""
    resumed_from_step: int
    """Steps that an earlier quickstart had trained already; 0: all were trained now."""
    model: dict[str, Any]
    """Shape of the model, in the words of its config."""
    num_parameters: int
    """Parameters of the model."""
    steps: int
    """Optimiser steps trained."""
    tokens_seen: int
    """Tokens trained on."""
    exit_layer: int
    """Layers that draft."""
    num_speculations: int
    """Drafts of a round."""
    num_prompts: int
    """Held-out prompts decoded."""
    max_new_tokens: int
    """Tokens decoded after each, at most."""
    example: dict[str, str]
    """`prompt` and `continuation` of one of them."""
    hardware: dict[str, Any]
    """What it ran on."""
    versions: dict[str, str]
    """Of Python and the packages that matter."""


def write_report(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")


def hardware() -> dict[str, Any]:
    """Return what this machine is."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": _accelerator(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return None
    return str(torch.get_device_module(device).get_device_name())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | found


def table(report: Report) -> str:
    """Return the report as text for a console of 80 columns or more."""
    return "\n".join([*_training_lines(report), "", *_decoding_lines(report), ""])


def _training_lines(report: Report) -> list[str]:
    exits = sorted(report.perplexity_per_exit)
    top = max(report.perplexity_per_exit.values())
    lines = [
        f"{report.num_parameters / 1e6:.1f}M parameters, {exits[-1]} layers, trained "
        f"{report.steps} steps on {report.tokens_seen / 1e6:.1f}M tokens",
        "",
        "exit  valid perplexity",
    ]
    for e in exits:
        value = report.perplexity_per_exit[e]
        note = "  the real output" if e == exits[-1] else ""
        note = "  drafts" if e == report.exit_layer else note
        lines.append(f"{e:4d}  {value:10.2f}  {'#' * max(1, round(40 * value / top))}{note}")
    return lines


def _decoding_lines(report: Report) -> list[str]:
    speed = report.tokens_per_second
    plain, fast = speed["autoregressive"], speed["self_speculative"]
    lines = [
        f"{report.num_prompts} held-out prompts, {report.max_new_tokens} new tokens each, greedy; "
        f"{report.num_speculations} drafts a round from exit {report.exit_layer}",
        "",
        "decoding            tokens/s  ms/token  acceptance  speedup",
        f"autoregressive    {plain:10.1f}{1e3 / plain:10.2f}",
        f"self-speculative  {fast:10.1f}{1e3 / fast:10.2f}{report.acceptance_rate:12.3f}"
        f"{report.speedup:8.2f}x",
        "",
        "both gave the same tokens" if report.same_tokens else "THE TOKENS DIFFER: this is a bug",
        "seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in report.seconds_per_stage.items())
        + f"; all {report.seconds_total:.0f}",
    ]
    if report.resumed_from_step:
        lines.append(
            f"(training went on from step {report.resumed_from_step} of an earlier quickstart, so "
            "these are not the seconds of a fresh one)"
        )
    return lines
