"""Ranks compare their plans before the first collective that could hang on a difference.

Two ranks that visit different numbers of layers crash (gloo) or hang (NCCL). Two ranks that visit
different layers, equally many, finish and silently mix gradients of different layers. The step
needs one small collective anyway, for the global count of valid tokens; the comparison rides on it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist

from models.plan import LayerPlan
from parallel.together import all_ranks

Described = tuple[tuple[int, ...], tuple[tuple[int, int, str], ...], tuple[int, ...]]
"""A microbatch as ranks compare it: batch shape, visits, exits."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know once they agree."""

    valid_tokens: int
    """Labels that count in the loss of this step, over all ranks."""
    stop: bool
    """Whether some rank was asked to stop after this step."""


def agree(
    step: int,
    plans: Sequence[LayerPlan],
    shapes: Sequence[tuple[int, ...]],
    *,
    valid_tokens: int,
    stop: bool = False,
    left_out: int = 0,
) -> Agreed:
    """Check that all ranks will visit the same layers with as many rows; share two numbers.

    Args:
        step: for the message.
        plans: one for each microbatch of the step, in the order they will run.
        shapes: the (B, S) of each microbatch.
        valid_tokens: how many labels of this rank count in the loss.
        stop: whether this rank was asked to stop.
        left_out: how many updates this rank has left out so far.

    Raises:
        RuntimeError: on every rank, naming the ranks, the step and the first layer that differ.
    """
    if dist.get_world_size() == 1:
        return Agreed(valid_tokens, stop)
    mine = [(shape, plan.signature, plan.exits) for shape, plan in zip(shapes, plans, strict=True)]
    digest = hashlib.blake2b(repr((step, left_out, mine)).encode(), digest_size=8).digest()
    sent = torch.tensor([int.from_bytes(digest, "big", signed=True), valid_tokens, int(stop)])
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(received, sent)
    if any(int(other[0]) != int(received[0][0]) for other in received):
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (step, left_out, mine))
        raise RuntimeError(_difference(everyone))
    tokens, stops = (sum(int(other[i]) for other in received) for i in (1, 2))
    return Agreed(tokens, stops > 0)


def _difference(everyone: Sequence[tuple[int, int, list[Described]]]) -> str:
    """Say in one line where the first rank that differs from rank 0 departs from it."""
    reference_step, reference_left_out, reference = everyone[0]
    rank, (step, left_out, theirs) = next(
        (rank, other) for rank, other in enumerate(everyone) if other != everyone[0]
    )
    remedy = "give every rank the same config, seed and checkpoint"
    if step != reference_step:
        return f"rank {rank} is at step {step} but rank 0 at step {reference_step}: {remedy}"
    if left_out != reference_left_out:
        return (
            f"step {step}: rank {rank} has left out {left_out} updates but rank 0 "
            f"{reference_left_out}: {remedy}"
        )
    index, (a, b) = next(
        (i, pair) for i, pair in enumerate(zip_longest(reference, theirs)) if pair[0] != pair[1]
    )
    place = f"step {step}, microbatch {index} of the rank: rank {rank} and rank 0 disagree"
    if a is None or b is None:
        return f"{place}: one of them has no such microbatch; {remedy}"
    if a[0] != b[0]:
        return f"{place}: batch shape {b[0]} against {a[0]}; {remedy}"
    if a[2] != b[2]:
        return f"{place}: exits {b[2]} against {a[2]}; {remedy}"
    ours, other = next(pair for pair in zip_longest(a[1], b[1]) if pair[0] != pair[1])
    layer = min(visit[0] for visit in (ours, other) if visit is not None)
    return (
        f"{place} at layer {layer}: rank {rank} goes on with {_name(other)}, "
        f"rank 0 with {_name(ours)}; {remedy}"
    )


def _name(visit: tuple[int, int, str] | None) -> str:
    return "no further visit" if visit is None else f"a visit to layer {visit[0]} ({visit[2]})"


def agree_on_settings(subject: str, settings: Mapping[str, object]) -> None:
    """Check that all ranks were given the same settings, before any of them is acted on.

    Args:
        subject: what has these settings, such as "the config".
        settings: plain values by name.

    Raises:
        RuntimeError: on every rank, naming the first rank that differs from rank 0, the first
            setting that does, and both values.
    """
    text = repr(sorted(settings.items()))
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    if len(set(all_ranks(digest))) == 1:
        return
    reference, *others = all_ranks(dict(settings))
    rank, theirs = next((r, o) for r, o in enumerate(others, start=1) if o != reference)
    names = [n for n in {**reference, **theirs} if reference.get(n) != theirs.get(n)]
    more = f" (and {len(names) - 1} more settings)" if len(names) > 1 else ""
    raise RuntimeError(
        f"rank {rank} was started with another {subject} than rank 0: {names[0]} is "
        f"{theirs.get(names[0])!r} there but {reference.get(names[0])!r} on rank 0{more}; give "
        "every rank the same command line, files and versions"
    )
