"""What `python -m inference bench` is told besides how to decode."""

from dataclasses import dataclass
from typing import Literal

from inference.prompt_sets.prompt import check_sample


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """On which prompts to measure, and what to show. How to decode is said by keys of generate."""

    prompts: str
    """A file of prompts, one a line or .jsonl with a key prompt and perhaps id and reference; a
    set's local file, as in cnn_dm:FILE.parquet; or the set alone, from the hub: cnn_dm, cnn_dm_lm,
    xsum, human_eval, top_v2; spec_bench only from a file."""
    num_samples: int | None = None
    """Measure so many of the prompts, the same ones each time; all unless set."""
    sample_seed: int = 0
    """Which ones; only with num_samples."""
    max_prompt_tokens: int | None = None
    """Leave out prompts that are longer, before any are chosen; unless set, a prompt that does not
    fit the model's context is an error."""
    repeats: int = 3
    """Decode every prompt so many times and take the median of its seconds."""
    compare: bool = True
    """Also measure autoregressive decoding, in turn, prompt by prompt; false measures the strategy
    alone."""
    picture: str | None = None
    """A PNG to draw acceptance by position into; only with strategy=self_speculative."""
    output: Literal["text", "json"] = "text"
    """text prints a table; json prints one object."""

    def __post_init__(self) -> None:
        check_sample(self.num_samples, self.sample_seed)
        for name in ("repeats", "max_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.picture is not None and not self.picture.endswith(".png"):
            raise ValueError(f"picture={self.picture} must be a .png file")
