"""One setting of exit and draft length, measured against plain decoding in turn."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from statistics import median

from inference.config import GenerateConfig
from inference.load import Loaded
from inference.measure.command import is_same_output
from inference.measure.figures import acceptance, speed, speedup
from inference.measure.intervals import Interval
from inference.measure.ways import Measured, measure, ways_of
from inference.prompt_sets.encode import Samples


@dataclass(frozen=True, slots=True)
class Cell:
    """What one setting gave."""

    exit_layer: int | None
    num_speculations: int | None
    """Neither where they are chosen as it runs (strategy=adaptive)."""
    acceptance: Interval | None
    tokens: int
    speed: Interval
    base_speed: Interval
    speedup: Interval
    seconds_to_first_token: float
    same_output: bool | None
    """Whether greedy tokens were those of plain decoding; None if sampled."""

    def values(self) -> dict[str, str]:
        """Return the cell as a row of a CSV file: six digits that matter, nothing for None."""
        found = {
            "exit_layer": self.exit_layer,
            "num_speculations": self.num_speculations,
            "acceptance": None if self.acceptance is None else self.acceptance.value,
            "tokens": self.tokens,
            "tokens_per_second": self.speed.value,
            "autoregressive_tokens_per_second": self.base_speed.value,
            "speedup": self.speedup.value,
            "speedup_low": self.speedup.low,
            "speedup_high": self.speedup.high,
            "seconds_to_first_token": self.seconds_to_first_token,
            "same_output": self.same_output,
        }
        return {name: _cell(value) for name, value in found.items()}


def measure_cell(
    decoding: GenerateConfig,
    exit_layer: int,
    num_speculations: int,
    samples: Samples,
    loaded: Loaded,
    *,
    repeats: int,
) -> Cell:
    """Measure self-speculation with this setting, and autoregressive decoding, on the samples.

    Raises:
        RuntimeError: if every prompt ends with its first tokens, so that there is no rate.
    """
    config = drafting(decoding, exit_layer, num_speculations)
    ways = ways_of(config, loaded, compare=True)
    base, ours = measure(ways, samples.ids, loaded, repeats=repeats)
    return cell(config, base, ours)


def cell(config: GenerateConfig, base: Measured, ours: Measured) -> Cell:
    """Return what was measured of one setting beside plain decoding of the same prompts.

    Raises:
        RuntimeError: if every prompt ends with its first tokens, so that there is no rate.
    """
    rate, plain, gain = speed(ours), speed(base), speedup(ours, base)
    if rate is None or plain is None or gain is None:
        raise RuntimeError(
            "every prompt ended with its first tokens, so there is no rate to compare: add "
            "stop_at_eos=false, or raise max_new_tokens"
        )
    return Cell(
        exit_layer=config.exit_layer,
        num_speculations=config.num_speculations,
        acceptance=acceptance(ours.generations),
        tokens=sum(len(each.token_ids) for each in ours.generations),
        speed=rate,
        base_speed=plain,
        speedup=gain,
        seconds_to_first_token=median(each.seconds_prefill for each in ours.generations),
        same_output=is_same_output([base, ours]) if config.temperature == 0 else None,
    )


def drafting(decoding: GenerateConfig, exit_layer: int, num_speculations: int) -> GenerateConfig:
    """Return the same decoding by self-speculation."""
    return replace(
        decoding,
        strategy="self_speculative",
        exit_layer=exit_layer,
        num_speculations=num_speculations,
    )


def plain(config: GenerateConfig) -> GenerateConfig:
    """Return the same without a strategy."""
    return replace(config, strategy="autoregressive", exit_layer=None, num_speculations=None)


def settings_text(decoding: GenerateConfig, repeats: int) -> str:
    """Return the keys that change what is measured and are not at their defaults, as words."""
    elsewhere = {"prompt", "prompts", "output", "dtype", "device"}
    changed = [
        f"{field.name}={getattr(decoding, field.name)}"
        for field in fields(decoding)
        if field.name not in elsewhere and getattr(decoding, field.name) != field.default
    ]
    return " ".join([*changed, f"repeats={repeats}"])


def digest(samples: Samples) -> str:
    """Return what the sample is known by: its token ids."""
    return hashlib.sha256(json.dumps(samples.ids).encode()).hexdigest()[:16]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
