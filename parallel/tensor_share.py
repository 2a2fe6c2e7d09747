"""A rank's share of a tensor parallel model: its memory, and the pieces of weights it takes."""

import torch

from models.config import LlamaConfig
from models.weight_check import parameter_shapes
from parallel.pieces import Piece
from parallel.tensor import TensorLlama
from parallel.world import World

COLUMNS = ("o_proj.weight", "down_proj.weight")
"""Cut along the second dimension, all else that is cut along the first."""
WHOLE = ("o_proj.bias", "down_proj.bias")
"""Added once the ranks' sums are summed."""


@torch.no_grad()
def empty_share(config: LlamaConfig, world: World, dtype: torch.dtype) -> TensorLlama:
    """Return this rank's share of a model, its memory allocated and zero, to be filled.

    Raises:
        ValueError: if the ranks cannot share the heads; before any memory is taken.
    """
    with torch.device("meta"):
        model = TensorLlama(config, world.rank, world.size).to(dtype)
    model.to_empty(device=world.device)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def pieces_of_share(model: TensorLlama) -> dict[str, Piece]:
    """Return what the rank holds of every parameter of the whole model."""
    held = {name.replace("_proj.linear.", "_proj."): p for name, p in model.named_parameters()}
    spans, found = _spans(model), dict[str, Piece]()
    for name, shape in parameter_shapes(model.whole).items():
        slices = [slice(0, length) for length in shape]
        span = None if name.endswith(WHOLE) else spans.get(name.split(".")[-2])
        if span is not None:
            axis = int(name.endswith(COLUMNS))
            # The last ranks may have less, or nothing: the rest of their memory stays zero.
            slices[axis] = slice(*(min(end, shape[axis]) for end in (span.start, span.stop)))
        corner = tuple(slice(0, each.stop - each.start) for each in slices)
        found[name] = Piece(tuple(slices), held[name].detach()[corner], shape)
    return found


def _spans(model: TensorLlama) -> dict[str, slice]:
    """Return which features of a module that is cut belong to the rank, by the module's name."""
    config, rank, whole = model.config, model.rank, model.whole
    heads, inner = config.num_attention_heads * config.head_width, config.intermediate_size
    first_kv = rank * whole.kv_heads // model.size * config.head_width
    kv = slice(first_kv, first_kv + config.kv_heads * config.head_width)
    q, f, v = (slice(rank * n, (rank + 1) * n) for n in (heads, inner, model.rows))
    names = {"q_proj": q, "o_proj": q, "k_proj": kv, "v_proj": kv, "lm_head": v, "embed_tokens": v}
    return names | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), f)
