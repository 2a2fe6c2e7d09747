"""What is known of an exported model: plain data, None or empty where nothing is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.measure.intervals import Interval
from models.config import LlamaConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitFigures:
    """One exit on the validation data."""

    exit_layer: int
    """Layers run before the head, 1..L."""
    loss: float
    """Mean cross entropy in nats a token."""
    perplexity: float
    agreement: float | None
    """Share of positions at which its likeliest token is the last layer's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The last validation of the run that is not younger than the checkpoint."""

    step: int
    tokens: int | None
    exits: tuple[ExitFigures, ...]
    """Ascending; the last is the model's real output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """How a checkpoint was trained."""

    config: Mapping[str, Any]
    """The run's resolved config."""
    step: int
    """Optimiser steps of the checkpoint."""
    tokens: int | None
    """Tokens trained on until then."""
    ranks: int | None
    """That saved it."""
    seconds: float | None
    """Of its steps, as the metrics have them."""
    commit: str | None
    """Of the code, in hex."""
    is_changed: bool
    """Whether the code had changes besides."""
    versions: Mapping[str, str]
    """Of packages."""
    validation: Validation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What `tune` has found for a model."""

    settings: tuple[str, ...]
    """Keys of `generate`, as `exit_layer=2`."""
    strategy: str
    """What was measured: the settings', or where plain decoding was faster the next best."""
    exit_layer: int | None
    num_speculations: int | None
    acceptance: Interval | None
    speedup: Interval
    """Over plain decoding."""
    speed: Interval
    """Tokens a second."""
    base_speed: Interval
    """Of plain decoding."""
    prompts: str
    num_prompts: int
    dtype: str
    device: str

    @property
    def is_plain(self) -> bool:
        """Whether nothing was faster than plain decoding."""
        return self.settings == ("strategy=autoregressive",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that a card is written from."""

    folder: str
    """Of the export, as it may be shown."""
    model: LlamaConfig
    dtype: str
    """Of the stored weights."""
    source: str
    """What was exported, as it may be shown."""
    base_model: str | None
    """Hub id of the model that this one was made from."""
    license: str | None
    run: RunFacts | None
    tuned: Tuned | None
    is_adapter: bool = False
    """Whether the folder holds adapters alone."""
