"""What `python -m inference exits` is told."""

from dataclasses import dataclass
from typing import Literal

from inference.config import GenerateConfig
from inference.sweep.config import check_file


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitsConfig:
    """Which text to look at, and how to show it."""

    prompt: str
    """Text to continue, greedily and by all layers."""
    max_new_tokens: int = 96
    """Most tokens to generate; with the prompt they must fit the model's context."""
    stop_at_eos: bool = True
    """End at the end-of-sequence token; false goes on to max_new_tokens."""
    picture: str | None = None
    """A .png to draw the text into, each token in the colour of its exit."""
    output: Literal["text", "json"] = "text"
    """text prints a table; json prints one object, tokens and exits in it."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""

    def __post_init__(self) -> None:
        if self.picture is not None:
            check_file("picture", self.picture, ".png")
        _ = self.decoding().settings(frozenset())  # checks the rest

    def decoding(self) -> GenerateConfig:
        """Return what `generate` would be told."""
        return GenerateConfig(
            prompt=self.prompt, max_new_tokens=self.max_new_tokens, stop_at_eos=self.stop_at_eos
        )
