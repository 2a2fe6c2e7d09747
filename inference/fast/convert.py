"""Turn a loaded model into its inference form, in place and layer by layer.

The model keeps its class and the meaning of its methods: plans, caches, decoding loops stay as is.
"""

from collections.abc import Callable
from typing import Literal, cast

from torch import nn

from inference.fast.choose import Chooser
from inference.fast.embedding import TiledEmbedding
from inference.fast.layer import FastLayer
from inference.fast.linear import FastLinear
from inference.fast.pack import pack
from inference.fast.passes import Passes
from inference.fast.run import Runner
from models.llama import Llama

Precision = Literal["dtype", "int8"]
"""Of the weights: the model's dtype, or 8 bits with a scale for each feature."""

Fuse = Callable[..., FastLinear]


def quicken(model: Llama, *, weights: Precision = "dtype") -> Llama:
    """Return the model in its inference form: it is the same object, and cannot be trained.

    Each layer's old weights are freed before the next one's are packed. Number and width of heads
    come from the weights, so a model split over ranks is as good as a whole one; modules around
    `o_proj`, `down_proj` and the head stay, and get their linear layers replaced. Norms and
    embedding keep the dtype in any case.

    Args:
        model: on the device and in the dtype that it decodes in; without gradients.
        weights: int8 makes decoding read half the bytes, and changes what comes out.
    """
    chooser, passes = Chooser(), Passes()

    def fuse(*linears: nn.Linear, is_gated: bool = False) -> FastLinear:
        packed = pack(
            [each.weight for each in linears],
            [cast(nn.Parameter | None, each.bias) for each in linears],
            is_int8=weights == "int8",
            is_gated=is_gated,
        )
        return FastLinear(packed, chooser)

    for name in list(model.layers):
        model.layers[name] = _layer(model.layers[name], fuse, passes)
    _head(model, fuse)
    model.run_plan = Runner(passes)
    return model.eval()


def _layer(layer: nn.Module, fuse: Fuse, passes: Passes) -> FastLayer:
    attention, mlp = cast(nn.Module, layer.self_attn), cast(nn.Module, layer.mlp)
    norms = layer.input_layernorm, layer.post_attention_layernorm
    return FastLayer(
        cast(int, attention.layer),
        cast(int, attention.head_dim),
        cast(tuple[nn.RMSNorm, nn.RMSNorm], norms),
        fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        _replaced(cast(nn.Module, attention.o_proj), fuse),
        fuse(mlp.gate_proj, mlp.up_proj, is_gated=True),
        _replaced(cast(nn.Module, mlp.down_proj), fuse),
        passes,
    )


def _replaced(module: nn.Module, fuse: Fuse) -> nn.Module:
    """Return the module with its linear layers, or it itself if it is one, in inference form."""
    if type(module) is nn.Linear:
        return fuse(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, fuse))
    return module


def _head(model: Llama, fuse: Fuse) -> None:
    """Replace the head; one that was tied gets a module, and shares its weights where it can."""
    if model.lm_head is not None:
        model.lm_head = _replaced(model.lm_head, fuse)
        return
    embedding = model.model.embed_tokens
    vocab_size, width = embedding.weight.shape
    head = nn.Linear(width, vocab_size, bias=False, device="meta")
    head.weight = embedding.weight
    model.lm_head = fuse(head)
    if model.lm_head.is_in_tiles and model.lm_head.packed.scale is None:
        tiled = TiledEmbedding(model.lm_head.packed.data, embedding.weight.shape[1])
        model.model.embed_tokens = cast(nn.Embedding, tiled)
