"""What decoding asks of a plan, and a draft cut from the full plan where the two part.

Letters: L layers, k visits that a draft shares with the full plan.
"""

from collections import Counter
from dataclasses import dataclass

from models.config import LlamaConfig
from models.plan import LayerPlan, Parts, full, shared_prefix


@dataclass(frozen=True, slots=True)
class Phases:
    """Self-speculation as three plans, each going on from hidden states of the one before."""

    shared: LayerPlan
    """The first k visits, which are those of the full plan: they run once on a token."""
    draft_only: LayerPlan
    """What the draft visits after exit k; nothing if the draft is a whole prefix."""
    verify: LayerPlan
    """The full plan's visits after exit k."""


def split(config: LlamaConfig, draft: LayerPlan) -> Phases:
    """Return the phases of self-speculation with this draft.

    Drafts come from the plan's last exit; its visits after that exit are left out.

    Raises:
        ValueError: if the plan does not fit the model or the cache, or is no draft: it visits
            nothing, or everything.
    """
    check_plan(config, draft)
    depth, exit_layer = config.num_hidden_layers, draft.exits[-1]
    done = next(count for count, exits in draft.exit_points.items() if exit_layer in exits)
    if not done:
        raise ValueError(
            f"the draft visits no layer before its exit {exit_layer}: let it run at least one"
        )
    k = min(done, shared_prefix(draft, full(depth)))
    if k == depth:
        raise ValueError(
            f"the draft runs all {depth} layers as the model does and saves nothing: leave some "
            "out, or use strategy=autoregressive"
        )
    draft_only = LayerPlan(draft.visits[k:done], (exit_layer,))
    return Phases(full(k), draft_only, full(depth, start=k))


def check_plan(config: LlamaConfig, plan: LayerPlan) -> None:
    """Refuse a plan that this model cannot decode with a key-value cache.

    Raises:
        ValueError: if the plan is for another depth, selects rows or tokens, or would write the
            keys of a layer twice.
    """
    depth, layers = config.num_hidden_layers, {visit.layer for visit in plan.visits}
    if not layers <= set(range(depth)) or not set(plan.exits) <= set(range(1, depth + 1)):
        raise ValueError(
            f"the plan visits layers {sorted(layers)} and exits at {list(plan.exits)}, the model "
            f"has layers 0..{depth - 1} and exits 1..{depth}: make the plan for {depth} layers"
        )
    for visit in plan.visits:
        if visit.gate is not None:
            raise ValueError(
                f"the plan's visit to layer {visit.layer} has a gate: a visit that selects rows or "
                "tokens cannot use a KV cache; leave the gate out"
            )
    times = Counter(visit.layer for visit in plan.visits if Parts.ATTN in visit.parts)
    for layer, count in times.items():
        if count > 1:
            raise ValueError(
                f"the plan visits layer {layer}'s attention {count} times, and a KV cache "
                "holds one key a position: visit it once"
            )
