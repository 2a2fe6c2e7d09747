import pytest
import torch

from inference.cache import KVCache
from tests.parity.reference import (
    VARIANTS,
    GrowingCache,
    next_token_loss,
    our_logits,
    pair,
    random_ids,
)
from tests.tiny import tiny_config

pytestmark = pytest.mark.parity

every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
TIGHT = {"rtol": 0.0, "atol": 1e-12}
"""Measured: 4e-15 at most; the house asks for 1e-6."""

CHUNKS = {"one at a time": [1] * 12, "several at a time": [5, 1, 4, 2]}


@every_variant
@pytest.mark.usefixtures("_exact_norms")
def test_logits_loss_and_every_gradient_equal_transformers(changes):
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=torch.float64)
    ids = random_ids(config)
    logits, reference = our_logits(ours, ids), theirs(ids).logits
    torch.testing.assert_close(logits, reference, **TIGHT)
    loss, expected = next_token_loss(logits, ids), next_token_loss(reference, ids)
    torch.testing.assert_close(loss, expected, **TIGHT)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, gradients[name], **TIGHT, msg=name)


@every_variant
def test_float64_equals_untouched_transformers_to_the_float32_of_its_norms(changes):
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=torch.float64)
    ids = random_ids(config)
    reference = theirs(ids, labels=ids)
    logits = our_logits(ours, ids)
    assert (logits - reference.logits).norm() < 1e-6 * reference.logits.norm()
    assert (next_token_loss(logits, ids) - reference.loss).abs() < 1e-6 * reference.loss


@every_variant
def test_float32_logits_equal_transformers(changes):
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=torch.float32)
    ids = random_ids(config)
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-4)


def static_cache(config):
    return KVCache(
        config,
        layers=range(config.num_hidden_layers),
        max_length=64,
        dtype=torch.float64,
        device=torch.device("cpu"),
        rows=2,
    )


@pytest.mark.parametrize(
    "make_cache", [lambda _: GrowingCache(), static_cache], ids=["cat", "ours"]
)
@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS.keys())
@every_variant
@pytest.mark.usefixtures("_exact_norms")
@torch.no_grad()
def test_logits_with_a_cache_equal_transformers_with_and_without_one(changes, sizes, make_cache):
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=torch.float64)
    ids = random_ids(config, rows=2, length=9 + sum(sizes))
    cache, their_cache, start = make_cache(config), None, 0
    mine, reference = [], []
    for part in ids.split([9, *sizes], dim=1):
        mine.append(our_logits(ours, part, start=start, cache=cache))
        output = theirs(part, past_key_values=their_cache, use_cache=True)
        their_cache = output.past_key_values
        reference.append(output.logits)
        start += part.shape[1]
    torch.testing.assert_close(torch.cat(mine, 1), torch.cat(reference, 1), **TIGHT)
    torch.testing.assert_close(torch.cat(mine, 1), theirs(ids).logits, **TIGHT)


@every_variant
@pytest.mark.usefixtures("_exact_norms")
@torch.no_grad()
def test_packed_documents_equal_transformers_on_each_document_alone(changes):
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=torch.float64)
    ids = random_ids(config, rows=2, length=20)
    lengths = [[20], [7, 1, 12]]
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    )
    restarted = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    running = torch.arange(20)[None]
    alone = torch.cat(
        [
            torch.cat([theirs(part[None]).logits[0] for part in row.split(sizes)])[None]
            for row, sizes in zip(ids, lengths, strict=True)
        ]
    )
    # Only distances count in rotary positions, but their angles are float32.
    for positions, tolerance in ((restarted, 1e-12), (running, 1e-6)):
        packed = our_logits(ours, ids, documents=documents, positions=positions)
        torch.testing.assert_close(packed, alone, rtol=tolerance, atol=tolerance)
