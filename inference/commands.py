"""The commands that are about more than one prompt, by name: how each is run, and its keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference.evaluate.command import run as evaluate
from inference.evaluate.config import EvalConfig
from inference.exits.command import run as exits
from inference.exits.config import ExitsConfig
from inference.follow.command import run as follow
from inference.follow.config import FollowConfig
from inference.measure.command import run as bench
from inference.measure.config import BenchConfig
from inference.opening import Open
from inference.sweep.command import run as sweep
from inference.sweep.config import SweepConfig
from inference.sweep.tune import run as tune
from inference.sweep.tune_config import TuneConfig


@dataclass(frozen=True, slots=True)
class Command:
    """One of `python -m inference NAME MODEL key=value ...`."""

    run: Callable[[str, list[str], Open], None]
    """Given the model's name, the overrides, and how to load the model."""
    config: type[Any]
    """The dataclass of its keys."""
    others: str = ""
    """Which keys it has besides, for --help."""


COMMANDS = {
    "bench": Command(bench, BenchConfig, ", besides those of generate"),
    "sweep": Command(sweep, SweepConfig, ", besides those of generate but for the strategy"),
    "tune": Command(tune, TuneConfig, ", besides those of generate but for the strategy"),
    "eval": Command(evaluate, EvalConfig),
    "exits": Command(exits, ExitsConfig),
    "follow": Command(follow, FollowConfig),
}
