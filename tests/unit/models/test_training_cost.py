"""The cost of training a part of a model against what torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.flops import flops_of_plan
from models.lora import LoraConfig, add_adapters
from models.plan import LayerPlan, dropped, full
from models.tokens import make_tokens
from models.training_cost import all_trained, shapes_of, training_flops_of_plan
from tests.tiny import tiny_config, tiny_llama

CONFIG = tiny_config()
ROWS, LENGTH = 3, 16
SIZES = {"rows": ROWS, "seq_len": LENGTH}
PLANS = {
    "two exits": full(4, exits=[3, 4]),
    "rows dropped": dropped([None, torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([])]),
}


def counted(model: torch.nn.Module, plan: LayerPlan) -> int:
    """Forward and backward, with the head's input gradient, as torch counts it."""
    tokens = make_tokens(CONFIG, torch.arange(LENGTH)[None])
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 96
    counter = FlopCounterMode(display=False)
    # torch counts the plain products of this backend, and not the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), counter:
        exits = model(ids, tokens, plan)
        model.unembed(torch.stack(list(exits.values()))).sum().backward()  # type: ignore[operator]
    return int(counter.get_total_flops())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_whole_model_costs_what_its_plan_does(plan: LayerPlan) -> None:
    exits = len(plan.exits)
    found = training_flops_of_plan(plan, CONFIG, all_trained(CONFIG), num_exits=exits, **SIZES)
    assert found == flops_of_plan(plan, CONFIG, num_exits_unembedded=exits, backward=True, **SIZES)
    assert shapes_of(tiny_llama(), CONFIG) == all_trained(CONFIG)


@pytest.mark.parametrize(
    ("lowest", "plan"),
    [(0, PLANS["two exits"]), (3, PLANS["two exits"]), (2, PLANS["rows dropped"])],
)
def test_frozen_matrices_and_lower_layers_cost_what_torch_counts(
    lowest: int, plan: LayerPlan
) -> None:
    model = tiny_llama(dtype=torch.float32)
    model.requires_grad_(False)
    for layer in range(lowest, 4):
        model.layers[str(layer)].requires_grad_(layer != 3 or lowest == 3)
    parts = shapes_of(model, CONFIG)
    assert parts.lowest == lowest
    expected = training_flops_of_plan(plan, CONFIG, parts, num_exits=len(plan.exits), **SIZES)
    assert counted(model, plan) == expected


def test_adapters_cost_at_most_what_is_said() -> None:
    model = tiny_llama(dtype=torch.float32)
    add_adapters(model, LoraConfig(rank=4, targets=("q_proj", "v_proj", "up_proj")))
    parts = shapes_of(model, CONFIG)
    plan = full(4)
    expected = training_flops_of_plan(plan, CONFIG, parts, num_exits=1, **SIZES)
    # Where the input of the lowest layer needs no gradient, that of q, k, v is not computed.
    assert 0.95 * expected < counted(model, plan) < expected
    assert expected < 0.75 * training_flops_of_plan(
        plan, CONFIG, all_trained(CONFIG), num_exits=1, **SIZES
    )
