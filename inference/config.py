"""What `python -m inference generate` is told."""

from dataclasses import dataclass
from typing import Literal

from inference.generation import Settings
from inference.prompt_sets.prompt import check_sample
from inference.sample import SamplingConfig
from inference.stop import check_stop
from models.plan import LayerPlan, full, without

MOST_SPECULATIONS = 12
"""Beyond, a round gains little and its buffers only grow."""
DEFAULT_SPECULATIONS = 6
"""Verifying seven tokens costs little more than one, and more drafts are rarely all right."""


def check_weights(weights: str, dtype: str) -> None:
    """Refuse a precision of weights that goes with no such dtype of activations.

    Raises:
        ValueError: for int8 weights where activations are float16 or float64.
    """
    if weights == "int8" and dtype not in ("float32", "bfloat16"):
        raise ValueError(f"weights=int8 needs dtype=bfloat16 or float32, got {dtype}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """What to generate, how, and what to show of it."""

    prompt: str | None = None
    """Text to continue."""
    prompts: str | None = None
    """Instead of prompt: a file of them, one a line, or .jsonl with a key prompt; SET:FILE, or SET
    from the hub: see the keys of bench."""
    strategy: Literal["autoregressive", "early_exit", "self_speculative", "adaptive"] = (
        "autoregressive"
    )
    """autoregressive: plain decoding. early_exit: only the layers below exit_layer run, nothing is
    verified, quality is that exit's. self_speculative: a part of the model drafts, the whole of it
    verifies; the output is that of autoregressive, faster. adaptive: self_speculative, but exit,
    draft length and confidence stop are chosen as it runs, with plain steps where nothing pays."""
    exit_layer: int | None = None
    """1..L-1: how many layers run before the exit; required by early_exit. With self_speculative,
    these layers draft."""
    skip_attn: tuple[int, ...] = ()
    """Instead of exit_layer, only with self_speculative: layers, from 0, whose attention drafts
    leave out. The verified keys and values stay complete."""
    skip_ffn: tuple[int, ...] = ()
    """As skip_attn: layers whose feed-forward branch drafts leave out."""
    skip_layers: tuple[int, ...] = ()
    """As skip_attn: layers that drafts leave out."""
    num_speculations: int | None = None
    """Tokens drafted before each verification; 6 unless set. With adaptive the most it may draft,
    12 unless set; not with other strategies."""
    draft_confidence: float = 0.0
    """End a round's drafting with the first token that the draft finds less likely than this; 0
    always drafts num_speculations. Only with self_speculative; the output is the same."""
    temperature: float = 0.0
    """0 takes the likeliest token (greedy); otherwise logits are divided by it before sampling."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum; 1 keeps all."""
    max_new_tokens: int = 128
    """Most tokens to generate; with the prompt they must fit the model's context."""
    min_new_tokens: int = 0
    """Choose no end-of-sequence token before so many tokens; a stop string ends the text all the
    same."""
    seed: int = 0
    """Of all draws; greedy decoding draws nothing."""
    stop_at_eos: bool = True
    """End at the end-of-sequence token; false goes on to max_new_tokens, for timing."""
    stop: tuple[str, ...] = ()
    """End with the token that completes one of these strings; the text ends before the string. A
    list such as '["END", "\\n\\n"]', in quotes for the shell."""
    output: Literal["text", "json"] = "text"
    """text streams as it is accepted, drafts in colour on a terminal; json prints one object a
    line for each prompt."""
    interactive: bool = False
    """Instead of prompt: read prompts from the terminal, or from a pipe, line by line, and continue
    each; Ctrl-C stops a text, Ctrl-D ends."""
    chat: bool = False
    """Word each prompt as a user's message, by the tokenizer's chat template; with interactive,
    lines are turns of one conversation."""
    num_samples: int | None = None
    """Take so many of the prompts, the same ones each time; all unless set."""
    sample_seed: int = 0
    """Which ones; only with num_samples."""
    batch_size: int = 1
    """Continue so many prompts at once; needs prompts and output=json, which stays in the order of
    the prompts."""
    compare: bool = False
    """Also measure autoregressive decoding of the same prompts, and print both rows and the
    speedup; with json they are the key comparison of the last object."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    fuse: bool = True
    """Decode with fused projections and kernels made for a few positions. false runs the layers as
    they are trained, which is slower; the results are the same but for rounding."""
    weights: Literal["dtype", "int8"] = "dtype"
    """int8 rounds the weights to 8 bits, with a scale for each feature: half the memory to read for
    each token, and not quite the same model. perplexity says by how much."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""
    ranks: Literal["tensor", "data"] = "tensor"
    """How the ranks of torchrun work together. tensor: each holds a part of every layer, and they
    decode one prompt or batch together. data: the weights are sharded, and each rank decodes other
    prompts of a file, batch_size at once; needs output=json."""
    reshard_after_forward: bool = True
    """Only with ranks=data: free a layer's gathered weights once it has run; false gathers each
    layer once and then holds the whole model on every rank."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("prompt and prompts are both set: give one of them")
        if self.strategy == "autoregressive" and self.compare:
            raise ValueError(
                "compare=true compares a strategy with autoregressive: add "
                "strategy=self_speculative"
            )
        self._check_prompts()
        self._check_unused()
        self._check_skips()
        if self.strategy == "early_exit" and self.exit_layer is None:
            raise ValueError("strategy=early_exit needs exit_layer=1..L-1")
        if not 0 <= self.draft_confidence < 1:
            raise ValueError(f"draft_confidence must be in [0, 1), got {self.draft_confidence}")
        for name in ("exit_layer", "num_speculations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {value}; for the full model alone use "
                    "strategy=autoregressive"
                )
        self._check_endings()
        self._check_batch()
        check_weights(self.weights, self.dtype)
        if self.weights == "int8" and not self.fuse:
            raise ValueError(
                "weights=int8 would be ignored with fuse=false, which runs the layers as they are: "
                "leave one of them out"
            )
        if self.weights == "int8" and self.ranks == "data":
            raise ValueError(
                "weights=int8 would be ignored with ranks=data, whose shards stay as they are "
                "stored: leave one of them out"
            )
        _ = self.settings(frozenset())  # checks what it is made of

    def _check_prompts(self) -> None:
        check_sample(self.num_samples, self.sample_seed)
        if self.num_samples is not None and self.prompts is None:
            raise ValueError(f"num_samples={self.num_samples} chooses among prompts: name a file")
        if not self.interactive:
            return
        for name in ("prompt", "prompts"):
            if getattr(self, name) is not None:
                raise ValueError(f"interactive=true reads prompts itself: leave out {name}")
        if self.output == "json" or self.compare:
            key = "compare=true" if self.compare else "output=json"
            raise ValueError(f"interactive=true streams text: leave out {key}")

    def _check_endings(self) -> None:
        check_stop(self.stop)
        if self.min_new_tokens and not self.stop_at_eos:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} would be ignored with stop_at_eos=false: "
                "leave one of them out"
            )

    def _check_batch(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.ranks == "tensor" and not self.reshard_after_forward:
            raise ValueError(
                "reshard_after_forward=false would be ignored with ranks=tensor: leave it out, or "
                "set ranks=data"
            )
        several = "ranks=data" if self.ranks == "data" else f"batch_size={self.batch_size}"
        if several == "batch_size=1":
            return
        if self.prompts is None:
            raise ValueError(f"{several} needs several prompts: name a file, prompts=FILE")
        if self.output == "text":
            raise ValueError(
                f"{several} continues prompts at once, which text cannot show: add output=json"
            )
        if self.strategy == "adaptive":
            raise ValueError(
                "strategy=adaptive decodes one prompt at a time: choose strategy=self_speculative, "
                f"or leave out {several}"
            )
        if self.compare:
            raise ValueError(f"compare=true decodes one prompt at a time: leave out {several}")
        for name, layers in self.skips.items():
            raise ValueError(
                f"{name}={layers} drafts for one prompt at a time: leave it out, or {several}"
            )
        if self.draft_confidence:
            raise ValueError(
                f"draft_confidence={self.draft_confidence} would be ignored with {several}: rows "
                "draft in step; leave it out"
            )

    def _check_unused(self) -> None:
        fixed: dict[str, object] = {
            **self.skips,
            "draft_confidence": self.draft_confidence or None,
        }
        unused = {} if self.strategy == "self_speculative" else fixed
        if self.strategy in ("autoregressive", "adaptive"):
            unused = {"exit_layer": self.exit_layer, **unused}
        if self.strategy in ("autoregressive", "early_exit"):
            unused = {**unused, "num_speculations": self.num_speculations}
        for name, value in unused.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value} would be ignored with strategy={self.strategy}: "
                    "choose strategy=self_speculative, or leave it out"
                )

    def _check_skips(self) -> None:
        if self.strategy == "self_speculative" and (self.exit_layer is None) == (not self.skips):
            raise ValueError(
                "strategy=self_speculative needs exit_layer=1..L-1 or layers for drafts to leave "
                "out (skip_attn, skip_ffn, skip_layers), and not both"
            )
        for name, layers in self.skips.items():
            if min(layers) < 0:
                raise ValueError(f"{name}={layers}: layers are numbered from 0")
            twice = set(layers) & set(self.skip_layers)
            if name != "skip_layers" and twice:
                raise ValueError(
                    f"{name}={layers}: layer {min(twice)} is in skip_layers too; leave it in one"
                )

    @property
    def skips(self) -> dict[str, list[int]]:
        """What drafts leave out: layers by the key that names them; keys without any are absent."""
        names = ("skip_attn", "skip_ffn", "skip_layers")
        return {name: list(getattr(self, name)) for name in names if getattr(self, name)}

    @property
    def precision(self) -> str:
        """What the numbers are, in words: the dtype, and that of the weights if it is another."""
        return self.dtype if self.weights == "dtype" else f"{self.dtype} with int8 weights"

    @property
    def speculations(self) -> int:
        """The draft length, the default resolved."""
        usual = MOST_SPECULATIONS if self.strategy == "adaptive" else DEFAULT_SPECULATIONS
        return self.num_speculations or usual

    def draft(self, num_layers: int) -> LayerPlan:
        """Return the plan that drafts with self_speculative, for a model of so many layers.

        Raises:
            ValueError: if a layer to skip is not in the model.
        """
        if self.exit_layer is not None:
            return full(self.exit_layer)
        for name, layers in self.skips.items():
            if max(layers) >= num_layers:
                raise ValueError(f"{name}={layers}: the model has layers 0..{num_layers - 1}")
        attn, ffn = ({*layers, *self.skip_layers} for layers in (self.skip_attn, self.skip_ffn))
        return without(num_layers, attn=attn, ffn=ffn)

    def settings(self, eos_ids: frozenset[int]) -> Settings:
        """Return what the decoding loop is told, given the tokens that end a sequence.

        Whoever has a tokenizer adds the strings `stop`.
        """
        return Settings(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            sampling=SamplingConfig(
                temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            ),
            seed=self.seed,
            eos_ids=eos_ids if self.stop_at_eos else frozenset(),
        )
