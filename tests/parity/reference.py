"""The same random model twice, ours and transformers', and what is compared between them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.config import LlamaConfig, RopeScaling
from models.hf_config import config_to_hf
from models.llama import Llama
from models.plan import LayerPlan, full
from models.tokens import Cache, make_tokens
from tests.tiny import tiny_llama

LLAMA3 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "a head each": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 32},
    "llama 3 rope": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "attention biases": {"attention_bias": True},
    "mlp biases": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "small eps": {"rms_norm_eps": 1e-6},
    "large eps": {"rms_norm_eps": 1e-2},
    "smollm2": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 48,
        "tie_word_embeddings": True,
        "rope_theta": 100000.0,
    },
}


def pair(config: LlamaConfig, *, dtype: torch.dtype) -> tuple[Llama, LlamaForCausalLM]:
    """Return our model and theirs with the same weights; biases and norms are random too."""
    ours = tiny_llama(config, dtype=dtype)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = LlamaForCausalLM._from_config(
        HFConfig(**config_to_hf(config, dtype="float32")), attn_implementation="sdpa"
    )
    missing, unexpected = theirs.to(dtype).load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return ours, theirs.eval()


@contextmanager
def exact_norms() -> Iterator[None]:
    """Let transformers compute norms in the dtype of the model: it always rounds to float32."""
    original = LlamaRMSNorm.forward

    def exact(self: LlamaRMSNorm, h: Tensor) -> Tensor:
        return rms_norm(h, h.shape[-1:], self.weight, self.variance_epsilon)

    LlamaRMSNorm.forward = exact
    try:
        yield
    finally:
        LlamaRMSNorm.forward = original


def prune(theirs: LlamaForCausalLM, layers: Sequence[int]) -> LlamaForCausalLM:
    """Give transformers' model these of its layers in this order, renumbered for its cache."""
    chosen = [theirs.model.layers[layer] for layer in layers]
    theirs.model.layers = torch.nn.ModuleList(chosen)
    theirs.config.num_hidden_layers = len(chosen)
    for index, layer in enumerate(chosen):
        layer.self_attn.layer_idx = index
    return theirs


def random_ids(config: LlamaConfig, rows: int = 3, length: int = 40) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, length))


def our_logits(
    model: Llama,
    ids: Tensor,
    plan: LayerPlan | None = None,
    *,
    start: int = 0,
    cache: Cache | None = None,
    documents: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Return logits (B, S, V) at the only exit of a plan, by default of the full one."""
    plan = plan or full(model.config.num_hidden_layers)
    if positions is None:
        positions = torch.arange(start, start + ids.shape[1])[None]
    tokens = make_tokens(model.config, positions, documents=documents, cache=cache)
    (hidden,) = model(ids, tokens, plan).values()
    return model.unembed(hidden)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class GrowingCache:
    """Keys and values concatenated as they come."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.held:
            old_keys, old_values = self.held[layer]
            keys, values = torch.cat((old_keys, keys), 2), torch.cat((old_values, values), 2)
        self.held[layer] = keys, values
        return keys, values
