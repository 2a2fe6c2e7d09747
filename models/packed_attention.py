"""Causal attention inside packed documents: each one by itself on a CPU, flex attention elsewhere.

Letters: B rows, S positions, N = B * S, C documents of equal length n, H query heads, G kv heads,
E head width.
"""

from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from models.cpu_attention import flash, flash_backward
from models.documents import Documents


def attend_inside(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Return softmax(q k') v (B, H, S, E) of each document alone.

    Args:
        q: (B, H, S, E).
        k: (B, G, S, E).
        v: (B, G, S, E).
        documents: of the B rows.
    """
    if documents.blocks is not None:
        return _compiled_flex()(q, k, v, documents.blocks)
    stream = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (N, H or G, E)
    out: Tensor = _each_document(*stream, documents.ids)[0]  # (N, H, E)
    return torch.unflatten(out, 0, documents.ids.shape).transpose(1, 2)  # (B, H, S, E)


@cache
def _compiled_flex() -> Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]:
    """Return `_flex`, compiled: only where it is called, as a decorator would import the compiler,
    two seconds, into every command.
    """
    return torch.compile(_flex)


def _flex(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask) -> Tensor:
    out = flex_attention(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


@torch.library.custom_op("skipstone::each_document", mutates_args=())
def _each_document(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention (N, H, E) of the documents ids (B, S), and its log sums (N, H).

    It is an operator of its own for two reasons. Autograd over a slice for each document copies and
    adds gradients as often as there are documents; and a compiled layer would be compiled again
    for every batch if it saw the loop.
    """
    calls = _calls(ids)
    out, sums = _like_each_document(q, k, v, ids)
    pieces = (_pieces(x, calls) for x in (q, k, v, out, sums))
    for q_, k_, v_, out_, sums_ in zip(*pieces, strict=True):
        for kept, made in zip((out_, sums_), flash(q_, k_, v_, is_causal=True), strict=True):
            kept.copy_(made)
    return out, sums


@_each_document.register_fake
def _like_each_document(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)


@torch.library.custom_op("skipstone::each_document_backward", mutates_args=())
def _each_document_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q (N, H, E) and k, v (N, G, E)."""
    calls = _calls(ids)
    gradients: tuple[Tensor, Tensor, Tensor] = _like_backward(gradient, q, k, v, ids, out, sums)
    given = zip(*(_pieces(x, calls) for x in (gradient, q, k, v, out, sums)), strict=True)
    asked = zip(*(_pieces(x, calls) for x in gradients), strict=True)
    for known, kept in zip(given, asked, strict=True):
        for to, made in zip(kept, flash_backward(*known, 0.0, True), strict=True):
            to.copy_(made)
    return gradients


@_each_document_backward.register_fake
def _like_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_each_document_backward(gradient, *ctx.saved_tensors), None


_each_document.register_autograd(_differentiate, setup_context=_keep)


def _calls(ids: Tensor) -> list[tuple[int, int]]:
    """Return count C and length n of the documents in order; equal neighbours share a call.

    Rows that are one document each, common in short sequences, are such neighbours.
    """
    begins = pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True).flatten().nonzero()[:, 0]
    lengths = begins.diff(append=begins.new_tensor([ids.numel()])).tolist()
    return [(len(list(same)), length) for length, same in groupby(lengths)]


def _pieces(x: Tensor, calls: list[tuple[int, int]]) -> list[Tensor]:
    """Return views (C, H, n, ...) of x (N, H, ...), one for each call of the kernel.

    The kernel wants the last dimension dense.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    parts = torch.split(x, [count * length for count, length in calls])
    return [
        torch.unflatten(part, 0, call).transpose(1, 2)
        for part, call in zip(parts, calls, strict=True)
    ]
