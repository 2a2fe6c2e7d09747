from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.flops import (
    count_parameters,
    flop_fraction,
    flops_of_plan,
    layer_parameters,
    num_parameters,
)
from models.llama import Llama
from models.plan import LayerPlan, Rows, Selection, Visit, dropped, full, ordered, without
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

CONFIGS = {
    "grouped heads": tiny_config(),
    "tied, wide heads": tiny_config(head_dim=32, tie_word_embeddings=True),
    "biases": tiny_config(attention_bias=True, mlp_bias=True, num_key_value_heads=None),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())

PLANS = {
    "full": full(4),
    "three exits": full(4, exits=[1, 2, 4]),
    "early exit": full(2),
    "branches left out": without(4, attn=[1, 2], ffn=[2, 3]),
    "rows dropped": dropped([None, torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([])]),
    "one twice": ordered([0, 1, 1], num_layers=4),
}
ROWS, LENGTH = 3, 16


@every_config
def test_parameters_are_those_of_the_model(config):
    model = Llama(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert layer_parameters(config) == sum(p.numel() for p in model.layers["0"].parameters())
    split = count_parameters(config)
    assert split.layers == sum(p.numel() for p in model.layers.parameters())
    assert split.embedding == prod(model.model.embed_tokens.weight.shape)
    assert split.head == (0 if config.tie_word_embeddings else split.embedding)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@every_config
def test_flops_are_what_torch_counts(config, plan, backward):
    model = tiny_llama(config, dtype=torch.float32)
    tokens = make_tokens(config, torch.arange(LENGTH)[None])
    h = torch.randn(ROWS, LENGTH, config.hidden_size, requires_grad=True)
    counter = FlopCounterMode(display=False)
    # torch counts the plain products of this backend, and not the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), counter:
        exits = model(h, tokens, plan)
        logits = model.unembed(torch.stack(list(exits.values())))
        if backward:
            logits.sum().backward()
    assert counter.get_total_flops() == flops_of_plan(
        plan,
        config,
        rows=ROWS,
        seq_len=LENGTH,
        num_exits_unembedded=len(plan.exits),
        backward=backward,
    )


def test_the_fraction_is_one_for_the_full_plan_and_counts_rows_and_branches():
    config = tiny_config()
    half = [torch.tensor([0, 1])] * 4
    assert flop_fraction(full(4), config, rows=4, seq_len=8) == 1.0
    assert flop_fraction(full(1), config, rows=4, seq_len=8) == 0.25
    assert flop_fraction(dropped(half), config, rows=4, seq_len=8) == 0.5
    assert flop_fraction(LayerPlan((), (4,)), config, rows=4, seq_len=8) == 0.0
    branches = [without(4, **{part: range(4)}) for part in ("attn", "ffn")]
    fractions = [flop_fraction(plan, config, rows=4, seq_len=8) for plan in branches]
    assert sum(fractions) == pytest.approx(1.0)
    assert all(0 < fraction < 1 for fraction in fractions)


def test_the_flops_of_a_learned_gate_are_refused():
    class Router:
        def __call__(self, h):
            return Selection()

    plan = LayerPlan(
        (Visit(0), Visit(1, gate=Router()), Visit(2, gate=Rows(torch.arange(1)))), (3,)
    )
    with pytest.raises(ValueError, match="Router gate are not known"):
        flop_fraction(plan, tiny_config(), rows=2, seq_len=8)
