import pytest
import torch

from models.plan import dropped, full, ordered, without
from tests.parity.reference import (
    GrowingCache,
    next_token_loss,
    our_logits,
    pair,
    prune,
    random_ids,
)
from tests.tiny import tiny_config

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("_exact_norms")]

NOBODY = torch.empty(0, dtype=torch.long)

PLANS = {
    "a layer left out": (without(4, attn={1}, ffn={1}), [0, 2, 3]),
    "a layer dropped by every row": (dropped([None, None, NOBODY, None]), [0, 1, 3]),
    "the first left out": (ordered([1, 2, 3], num_layers=4), [1, 2, 3]),
    "reordered": (ordered([2, 0, 3, 1], num_layers=4), [2, 0, 3, 1]),
    "one twice": (ordered([0, 1, 1, 3], num_layers=4), [0, 1, 1, 3]),
    "exit 1": (full(1), [0]),
    "exit 3": (full(3), [0, 1, 2]),
    "exit 3 of a full pass": (full(4, exits=[3]), [0, 1, 2]),
    "all of them": (full(4), [0, 1, 2, 3]),
}
every_plan = pytest.mark.parametrize(("plan", "layers"), PLANS.values(), ids=PLANS.keys())


@every_plan
def test_a_plan_equals_transformers_with_its_layers_pruned_and_reordered(plan, layers):
    config = tiny_config()
    ours, theirs = pair(config, dtype=torch.float64)
    named = {id(p): name for name, p in theirs.named_parameters()}
    prune(theirs, layers)
    ids = random_ids(config)
    logits, reference = our_logits(ours, ids, plan), theirs(ids, use_cache=False).logits
    torch.testing.assert_close(logits, reference, rtol=0, atol=1e-12)
    next_token_loss(logits, ids).backward()
    next_token_loss(reference, ids).backward()
    gradients = {named[id(p)]: p.grad for p in theirs.parameters()}
    for name, parameter in ours.named_parameters():
        if name not in gradients:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("layers", [[0, 2, 3], [2, 0, 3, 1], [0]], ids=str)
@torch.no_grad()
def test_a_plan_decodes_with_a_cache_like_transformers_with_its_layers_pruned(layers):
    config = tiny_config()
    ours, theirs = pair(config, dtype=torch.float64)
    prune(theirs, layers)
    ids = random_ids(config, rows=2, length=20)
    plan, cache, start = ordered(layers, num_layers=4), GrowingCache(), 0
    their_cache = None
    for part in ids.split([9, 1, 1, 4, 5], dim=1):
        logits = our_logits(ours, part, plan, start=start, cache=cache)
        output = theirs(part, past_key_values=their_cache, use_cache=True)
        their_cache = output.past_key_values
        torch.testing.assert_close(logits, output.logits, rtol=0, atol=1e-12)
        start += part.shape[1]
    assert sorted(cache.held) == sorted(layers)


def test_attention_or_feed_forward_alone_equals_transformers_without_the_other_branch():
    config = tiny_config()
    ours, theirs = pair(config, dtype=torch.float64)
    with torch.no_grad():  # a branch whose last projection is zero adds nothing
        theirs.model.layers[1].self_attn.o_proj.weight.zero_()
        theirs.model.layers[2].mlp.down_proj.weight.zero_()
    ids = random_ids(config)
    logits = our_logits(ours, ids, without(4, attn={1}, ffn={2}))
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=0, atol=1e-12)
