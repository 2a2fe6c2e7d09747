"""Activation recomputation, as every engine calls a layer when it is asked for."""

from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.execute import plain_call
from models.plan import Parts
from models.tokens import Tokens


def recomputed_call(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
    """Call the layer on h (B, S, D), keeping its input only and running it again in backward."""
    out = checkpoint(plain_call, layer, h, tokens, parts, use_reentrant=False)
    return cast(Tensor, out)
