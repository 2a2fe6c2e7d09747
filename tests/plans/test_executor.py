from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.execute import run_plan, visit
from models.plan import LayerPlan, Parts, Rows, Selection, Visit, dropped, full, ordered, without
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

B, S = 5, 12


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture
def h(model):
    return torch.randn(B, S, model.config.hidden_size, dtype=torch.float64)


def side(model, positions=None, documents=None):
    if positions is None:
        positions = torch.arange(S)[None]
    return make_tokens(model.config, positions, documents=documents)


def run(model, h, plan, tokens=None):
    return run_plan(plan, model.layers, h, tokens or side(model))


def last(model, h, plan, tokens=None):
    (out,) = run(model, h, plan, tokens).values()
    return out


def rows(*ids):
    return Rows(torch.tensor(ids, dtype=torch.long))


@dataclass(frozen=True)
class Chosen:
    """A gate that returns what it was given."""

    selection: Selection

    def __call__(self, h: Tensor) -> Selection:
        return self.selection


def chosen(layer=0, parts=Parts.BOTH, **selection):
    return Visit(layer, parts, Chosen(Selection(**selection)))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# Whole plans.


def test_the_full_plan_is_a_plain_loop_over_the_layers(model, h):
    expected = h
    for layer in model.layers.values():
        expected = layer(expected, side(model))
    assert torch.equal(last(model, h, full(4)), expected)


def test_an_exit_at_every_depth_equals_the_full_plan_of_that_depth(model, h):
    exits = run(model, h, full(4, exits=range(5)))
    assert list(exits) == [0, 1, 2, 3, 4]
    assert torch.equal(exits[0], h)
    for e in range(1, 5):
        assert torch.equal(exits[e], last(model, h, full(e)))


def test_going_on_from_an_exit_equals_the_full_plan(model, h):
    kept = last(model, h, full(2))
    assert torch.equal(last(model, kept, full(4, start=2)), last(model, h, full(4)))


def test_layers_run_in_the_order_of_the_plan(model, h):
    expected = h
    for layer in (3, 0, 0, 2):
        expected = model.layers[str(layer)](expected, side(model))
    assert torch.equal(last(model, h, ordered([3, 0, 0, 2], num_layers=4)), expected)


def test_without_leaves_out_single_branches_and_whole_layers(model, h):
    expected = model.layers["0"](h, side(model), Parts.FFN)
    expected = model.layers["1"](expected, side(model), Parts.ATTN)
    expected = model.layers["3"](expected, side(model))
    plan = without(4, attn=[0, 2], ffn=[1, 2])
    assert [v.layer for v in plan.visits] == [0, 1, 3]
    assert torch.equal(last(model, h, plan), expected)


def test_the_two_branches_one_after_the_other_are_the_whole_layer(model, h):
    halves = LayerPlan((Visit(0, Parts.ATTN), Visit(0, Parts.FFN)), (1,))
    assert torch.equal(last(model, h, halves), last(model, h, full(1)))


def test_a_plan_without_visits_returns_the_input(model, h):
    assert torch.equal(last(model, h, LayerPlan((), (4,))), h)


# Rows.


def test_each_row_equals_the_row_run_alone_through_its_own_layers(model, h):
    survivors = [None, torch.tensor([0, 2, 4]), torch.tensor([1, 2]), torch.tensor([2])]
    together = run(model, h, dropped(survivors, exits=[2, 4]))
    for row in range(B):
        own = [i for i, kept in enumerate(survivors) if kept is None or row in kept]
        for e in (2, 4):
            layers = [layer for layer in own if layer < e]
            alone = last(model, h[row : row + 1], ordered(layers, num_layers=4))
            close(together[e][row : row + 1], alone)


def test_rows_keep_their_own_positions_and_documents(model, h):
    positions = torch.randint(0, 100, (B, S)).sort(dim=1).values
    documents = torch.randint(0, 3, (B, S)).sort(dim=1).values
    plan = LayerPlan((Visit(0, gate=rows(1, 3)),), (1,))
    together = last(model, h, plan, side(model, positions, documents))
    for row in (1, 3):
        own = side(model, positions[row : row + 1], documents[row : row + 1])
        close(together[row : row + 1], last(model, h[row : row + 1], full(1), own))


def test_rows_that_are_not_selected_pass_bitwise(model, h):
    out = last(model, h, LayerPlan((Visit(1, gate=rows(0, 3)),), (4,)))
    assert torch.equal(out[[1, 2, 4]], h[[1, 2, 4]])
    assert not torch.isclose(out[[0, 3]], h[[0, 3]]).all(-1).any()


@pytest.mark.parametrize("documents", [None, torch.zeros(B, S)], ids=["causal", "mask"])
@pytest.mark.parametrize("parts", [Parts.BOTH, Parts.ATTN, Parts.FFN], ids=str)
def test_dropping_every_row_returns_the_input(model, h, parts, documents):
    out = last(model, h, LayerPlan((Visit(0, parts, rows()),), (1,)), side(model, None, documents))
    assert torch.equal(out, h)


def test_dropping_the_only_row_returns_the_input(model, h):
    tokens = side(model, torch.arange(S)[None], torch.zeros(1, S))
    out = last(model, h[:1], LayerPlan((Visit(0, gate=rows()),), (1,)), tokens)
    assert torch.equal(out, h[:1])


def test_selecting_every_row_equals_no_gate(model, h):
    plan = LayerPlan((Visit(0, gate=rows(*range(B))),), (1,))
    assert torch.equal(last(model, h, plan), last(model, h, full(1)))


def test_gradients_of_selected_rows_are_those_of_plain_indexing(model, h):
    survivors = [torch.tensor(kept) for kept in ([0, 2, 4], [1, 2], [2], [0, 1, 2, 3])]
    h.requires_grad_()
    found = run(model, h, dropped(survivors, exits=[1, 2, 4]))  # exits in between add gradients
    plain, slow = {}, h
    for layer, kept in enumerate(survivors):
        out = last(model, slow.index_select(0, kept), ordered([layer], num_layers=4))
        slow = slow.index_copy(0, kept, out)
        plain[layer + 1] = slow
    weights = [h, *model.layers.parameters()]
    grads = torch.randn(3, *h.shape, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad([of[e] for e in (1, 2, 4)], weights, grads.unbind(), retain_graph=True)
        for of in (found, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_a_dropped_row_passes_its_gradient_on_and_gives_none_to_the_layer(model, h):
    h = h.requires_grad_()
    out = last(model, h, LayerPlan((Visit(0, gate=rows(1)),), (1,)))
    out[[0, 2, 3, 4]].sum().backward()
    assert torch.equal(h.grad[[0, 2, 3, 4]], torch.ones(4, S, h.shape[-1], dtype=h.dtype))
    assert not h.grad[1].any()
    assert all(p.grad is None or not p.grad.any() for p in model.layers["0"].parameters())


# Tokens.


@pytest.fixture
def picks():
    return torch.stack([torch.randperm(S)[:7].sort().values for _ in range(B)])


def test_selected_tokens_equal_the_shorter_sequence_run_by_itself(model, h, picks):
    positions = torch.randint(0, 100, (B, S)).sort(dim=1).values
    documents = torch.randint(0, 3, (B, S)).sort(dim=1).values
    plan = LayerPlan((chosen(tokens=picks),), (1,))
    out = last(model, h, plan, side(model, positions, documents))
    for row in range(B):
        some = picks[row]
        own = side(model, positions[row, some][None], documents[row, some][None])
        close(out[row, some][None], last(model, h[row, some][None], full(1), own))


def test_selected_tokens_look_back_only_at_selected_tokens_when_causal(model, h, picks):
    out = last(model, h, LayerPlan((chosen(tokens=picks),), (1,)))
    for row in range(B):
        own = side(model, picks[row][None])
        close(out[row, picks[row]][None], last(model, h[row, picks[row]][None], full(1), own))


def test_tokens_that_are_not_selected_pass_bitwise(model, h, picks):
    out = last(model, h, LayerPlan((chosen(tokens=picks),), (1,)))
    untouched = torch.ones(B, S, dtype=torch.bool).scatter(1, picks, value=False)
    assert torch.equal(out[untouched], h[untouched])
    assert not torch.isclose(out[~untouched], h[~untouched]).all(-1).any()


def test_the_weight_scales_what_the_layer_adds_and_gets_a_gradient(model, h, picks):
    weight = torch.rand(B, 7, dtype=torch.float64, requires_grad=True)
    plan = LayerPlan((chosen(tokens=picks, weight=weight),), (1,))
    out, whole = last(model, h, plan), last(model, h, LayerPlan((chosen(tokens=picks),), (1,)))
    index = picks[..., None].expand(-1, -1, h.shape[-1])
    added = (whole - h).gather(1, index)
    close(out, h + torch.zeros_like(h).scatter(1, index, weight[..., None] * added))
    out.sum().backward()
    close(weight.grad, added.sum(-1))


def test_a_weight_of_zero_leaves_the_input(model, h):
    out = last(model, h, LayerPlan((chosen(weight=torch.zeros(B, S, dtype=h.dtype)),), (1,)))
    assert torch.equal(out, h)


def test_tokens_are_selected_within_the_selected_rows(model, h, picks):
    some = torch.tensor([1, 4])
    weight = torch.rand(2, 7, dtype=torch.float64)
    both = LayerPlan((chosen(rows=some, tokens=picks[some], weight=weight),), (1,))
    inner = LayerPlan((chosen(tokens=picks[some], weight=weight),), (1,))
    out = last(model, h, both)
    close(out[some], last(model, h[some], inner))
    assert torch.equal(out[[0, 2, 3]], h[[0, 2, 3]])


# Calls.


def recomputed(layer, h, tokens, parts):
    return checkpoint(layer, h, tokens, parts, use_reentrant=False)


def test_recomputing_activations_gives_the_same_gradients_bitwise(model, h, picks):
    weight = torch.rand(B, 7, dtype=torch.float64)
    visits = (Visit(0), Visit(1, gate=rows(0, 2)), chosen(2, tokens=picks, weight=weight))
    plan = LayerPlan((*visits, Visit(3, Parts.FFN)), (2, 4))
    gradients = []
    for options in ({}, {"call": recomputed}):
        model.zero_grad()
        exits = run_plan(plan, model.layers, h, side(model), **options)
        sum(out.pow(2).sum() for out in exits.values()).backward()
        gradients.append([p.grad.clone() for p in model.layers.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_visit_calls_the_layer_once_with_only_the_selected_items(model, h, picks):
    shapes = []

    def spy(layer, h, tokens, parts):
        shapes.append((tuple(h.shape[:2]), tuple(tokens.cos.shape[:2]), parts))
        return layer(h, tokens, parts)

    some = torch.tensor([0, 3])
    v = chosen(0, Parts.FFN, rows=some, tokens=picks[some])
    visit(v, model.layers["0"], h, side(model), spy)
    assert shapes == [((2, 7), (2, 7), Parts.FFN)]


def test_a_selection_of_a_cached_batch_is_refused(model, h):
    class Full:
        def append(self, layer, keys, values):
            return keys, values

    tokens = make_tokens(tiny_config(), torch.arange(S)[None], cache=Full())
    with pytest.raises(ValueError, match="cannot use a KV cache"):
        visit(Visit(0, gate=rows(1)), model.layers["0"], h, tokens)
