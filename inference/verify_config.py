"""What `python -m inference verify` is told."""

from dataclasses import dataclass, replace
from typing import Literal

from inference.config import GenerateConfig

DEFAULT_TOKENS = 64
DEFAULT_SAMPLED_TOKENS = 4
"""Three drafts and the token after them: every branch of a round, and the round after it."""
DEFAULT_SEEDS, FEWEST_SEEDS = 200, 50


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Which decoding to hold against the autoregressive one, and on what."""

    prompts: str
    """A file of prompts, one a line, or .jsonl with a key prompt; SET:FILE or SET as for bench."""
    num_samples: int | None = None
    """Take so many of the prompts, the same ones each time; all unless set."""
    sample_seed: int = 0
    """Which ones; only with num_samples."""
    strategy: Literal["self_speculative", "adaptive"] = "self_speculative"
    """What is held against it; as for generate."""
    exit_layer: int | None = None
    """1..L-1: how many layers draft; half of them unless set, or skips are."""
    skip_attn: tuple[int, ...] = ()
    """Instead of exit_layer: layers, from 0, whose attention drafts leave out."""
    skip_ffn: tuple[int, ...] = ()
    """As skip_attn: layers whose feed-forward branch drafts leave out."""
    skip_layers: tuple[int, ...] = ()
    """As skip_attn: layers that drafts leave out."""
    num_speculations: int | None = None
    """Tokens drafted before each verification, 6 unless set; with adaptive the most, 12 unless
    set."""
    batch_size: int = 1
    """Most prompts drafted and verified at once; autoregressive decoding takes them one by one."""
    draft_confidence: float = 0.0
    """End a round's drafting with the first token that the exit finds less likely than this; 0
    always drafts num_speculations."""
    temperature: float = 0.0
    """0 compares tokens one by one; more compares the distributions of sampled tokens."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum; 1 keeps all."""
    max_new_tokens: int | None = None
    """New tokens that are compared: 64 unless set, or 4 when sampled, whose joint distribution is
    tested."""
    seeds: int | None = None
    """Generations of each prompt by either way of decoding, each with a seed of its own; 200 unless
    set. Only with a temperature."""
    seed: int = 0
    """The first of them."""
    stop_at_eos: bool = True
    """End at the end-of-sequence token; false goes on to max_new_tokens."""
    output: Literal["text", "json"] = "text"
    """text prints a table; json prints one object a line for each prompt."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it. In float64 ties are hardly ever met."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""

    def __post_init__(self) -> None:
        for name in ("exit_layer", "num_speculations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}: or leave it out")
        if self.temperature == 0:
            for name, default in (("seeds", None), ("seed", 0)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} would be ignored at temperature=0: set a "
                        "temperature, or leave it out"
                    )
        if self.num_seeds < FEWEST_SEEDS:
            raise ValueError(
                f"seeds must be at least {FEWEST_SEEDS} for a test that can find anything, got "
                f"{self.seeds}"
            )
        if self.is_sampled and self.batch_size != 1:
            raise ValueError(
                f"batch_size={self.batch_size} would be ignored with temperature={self.temperature}"
                ": every prompt is drawn many times alone; leave one of them out"
            )
        _ = self.drafting(2)  # checks the rest

    @property
    def is_sampled(self) -> bool:
        """Whether distributions are compared instead of tokens."""
        return self.temperature != 0

    @property
    def num_seeds(self) -> int:
        """Generations by either way of decoding, the default resolved."""
        return DEFAULT_SEEDS if self.seeds is None else self.seeds

    @property
    def num_tokens(self) -> int:
        """New tokens of each generation, the default resolved."""
        default = DEFAULT_SAMPLED_TOKENS if self.is_sampled else DEFAULT_TOKENS
        return default if self.max_new_tokens is None else self.max_new_tokens

    def plain(self, seed: int = 0) -> GenerateConfig:
        """Return what `generate` would be told for what is expected."""
        return GenerateConfig(
            prompts=self.prompts,
            num_samples=self.num_samples,
            sample_seed=self.sample_seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=self.num_tokens,
            seed=seed,
            stop_at_eos=self.stop_at_eos,
        )

    def drafting(self, num_layers: int, seed: int = 0) -> GenerateConfig:
        """Return what `generate` would be told for what is found, by a model of so many layers."""
        has_choice = self.skip_attn or self.skip_ffn or self.skip_layers
        exit_layer = self.exit_layer
        if exit_layer is None and self.strategy == "self_speculative" and not has_choice:
            exit_layer = max(1, num_layers // 2)
        return replace(
            self.plain(seed),
            strategy=self.strategy,
            exit_layer=exit_layer,
            skip_attn=self.skip_attn,
            skip_ffn=self.skip_ffn,
            skip_layers=self.skip_layers,
            num_speculations=self.num_speculations,
            draft_confidence=self.draft_confidence,
            batch_size=self.batch_size,
            output="json",
        )
