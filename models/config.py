"""The shape of a Llama, in the words of its Hugging Face `config.json`."""

from dataclasses import dataclass

MOST_LAYERS = 1000
"""The deepest Llama has 126."""
WIDEST = 2**24
"""Side of a matrix; the elements of one with two such sides still fit 64 bits."""
MOST = {
    "vocab_size": WIDEST,
    "hidden_size": WIDEST,
    "intermediate_size": WIDEST,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": WIDEST,
    "num_key_value_heads": WIDEST,
    "head_dim": WIDEST,
    "max_position_embeddings": 2**40,
}
"""What each size may be, from 1 on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3 rotary scaling (arXiv 2407.21783): stretch long wavelengths, keep short ones."""

    factor: float
    """How much longer the context is than the one the model was first trained on."""
    low_freq_factor: float = 1.0
    """Wavelengths above original length / this are stretched by `factor`."""
    high_freq_factor: float = 4.0
    """Wavelengths below original length / this are kept."""
    original_max_position_embeddings: int = 8192
    """Context length of the first training, in tokens."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"model.rope_scaling.factor must be >= 1, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "model.rope_scaling.low_freq_factor must be positive and below high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                "model.rope_scaling.original_max_position_embeddings must be at least 1, got "
                f"{self.original_max_position_embeddings}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """A Llama 1, 2, 3, 3.2 or SmolLM2: every field means what transformers means by it."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's size."""
    hidden_size: int
    """Width D of the residual stream."""
    intermediate_size: int
    """Width F of the feed-forward branch."""
    num_hidden_layers: int
    """Number of layers L."""
    num_attention_heads: int
    """Query heads H."""
    num_key_value_heads: int | None = None
    """Key and value heads G, shared by H / G query heads each; default: as many as query heads."""
    head_dim: int | None = None
    """Width E of one head; default: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    """Longest context, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Llama 3 rotary scaling; absent: none."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    attention_bias: bool = False
    """Biases on the q, k, v and o projections."""
    mlp_bias: bool = False
    """Biases on the gate, up and down projections."""
    tie_word_embeddings: bool = False
    """Whether the head is the embedding matrix."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                limit = "at least 1" if value < 1 else f"at most {most}"
                raise ValueError(f"model.{name} must be {limit}, got {value}")
        for name in ("rope_theta", "rms_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name} must be positive, got {getattr(self, name)}")
        # transformers refuses this even when head_dim is given, so no export could be loaded.
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} must be a multiple of "
                f"model.num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"model.num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"model.num_key_value_heads {self.kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(
                f"model.head_dim must be even for rotary angles, got {self.head_width}"
            )

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, the default resolved."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head, the default resolved."""
        return self.head_dim or self.hidden_size // self.num_attention_heads
