"""Where two decodings of a prompt part, and whether rounding explains it.

Letters: S positions, V vocabulary, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens

STORED, SUMMED = 4, 16
"""Units of rounding between logits that count as tied: of types of 16 bits, whose sums are made in
float32, and of the others, whose sums round too. docs/lossless.md derives and measures them."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two decodings of one prompt have the same tokens, and what comes then."""

    verdict: Literal["equal", "tie", "fault"]
    """tie: rounding alone can have made the choice. fault: it cannot."""
    same: int
    """So many new tokens are the same; also the position, from 0, of the first different one."""
    expected: int | None = None
    """That token by autoregressive decoding; None if it had ended."""
    found: int | None = None
    """That token by the other way of decoding; None if it had ended."""
    margin: float | None = None
    """Distance of their logits in the full model, after what both decodings have in common."""
    tolerance: float | None = None
    """Margins up to this one are ties."""


def compare_tokens(
    model: Llama, prompt_ids: Sequence[int], expected: Sequence[int], found: Sequence[int]
) -> Agreement:
    """Compare new tokens with those expected after a prompt.

    At the first difference the full model reads the common beginning in one pass without a cache.
    It is a tie if neither token is further below the likeliest than the tolerance. A sequence that
    ends where the other goes on, or an id that the model does not have, is always a fault.
    """
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    if same == len(expected) == len(found):
        return Agreement("equal", same)
    if same == min(len(expected), len(found)):
        return Agreement("fault", same, *(next(iter(x[same:]), None) for x in (expected, found)))
    pair = expected[same], found[same]
    if not 0 <= min(pair) <= max(pair) < model.config.vocab_size:
        return Agreement("fault", same, *pair)
    logits = next_logits(model, [*prompt_ids, *expected[:same]])
    tolerance = rounding(logits)
    chosen = [float(logits[token]) for token in pair]
    is_tie = float(logits.max()) - min(chosen) <= tolerance  # false for what is not a number
    margin = abs(chosen[0] - chosen[1])
    return Agreement("tie" if is_tie else "fault", same, *pair, margin, tolerance)


@torch.inference_mode()
def next_logits(model: Llama, ids: Sequence[int]) -> Tensor:
    """Return the full model's logits (V,) of the token after ids, S of them, in one plain pass."""
    device, depth = model.model.embed_tokens.weight.device, model.config.num_hidden_layers
    tokens = make_tokens(model.config, torch.arange(len(ids), device=device)[None])
    h = model(torch.tensor([list(ids)], device=device), tokens, full(depth))[depth]  # (1, S, D)
    return model.unembed(h[0, -1])


def rounding(logits: Tensor) -> float:
    """Return the margin that rounding explains between logits (V,), in their dtype.

    So many units in the last place of the largest of them.
    """
    kind = torch.finfo(logits.dtype)
    return (STORED if kind.bits == 16 else SUMMED) * kind.eps * float(logits.abs().max())
