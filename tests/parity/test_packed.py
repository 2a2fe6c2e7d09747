"""Packed documents train what they train one by one: outputs and every gradient, float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor

from models.documents import document_mask
from models.execute import Call, plain_call
from models.llama import Llama
from models.plan import LayerPlan, Selection, Visit, dropped, full
from models.tokens import Tokens, make_tokens
from parallel.recompute import recomputed_call
from tests.parity.reference import VARIANTS
from tests.tiny import tiny_config, tiny_llama

LAYERS, S = 4, 24
EXACT = {"rtol": 0, "atol": 1e-10}


def drawn(seed: int) -> list[list[int]]:
    """Return the lengths of three rows of up to six documents."""
    random = Random(seed)
    rows = []
    for num_borders in (1, 3, 5):
        borders = [0, *sorted(random.sample(range(1, S), num_borders)), S]
        rows.append([after - before for before, after in pairwise(borders)])
    return rows


PACKINGS = {
    "a full row": [[S], [7, 1, 16], [1, 22, 1]],
    "tokens": [[1] * S, [S - 1, 1], [12, 12]],
    "drawn": drawn(0),
    "drawn again": drawn(1),
}
every_packing = pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS.keys())


@dataclass(frozen=True)
class Picks:
    """A gate that runs the same positions (B, K) of every row, as routers do."""

    tokens: Tensor

    def __call__(self, h: Tensor) -> Selection:
        return Selection(tokens=self.tokens)


@dataclass(frozen=True)
class Packed:
    """Rows of documents; outputs are weighted so that no two gradients are alike."""

    lengths: list[list[int]]
    ids: Tensor
    weight: Tensor

    def tokens(self, model: Llama) -> Tokens:
        rows = [torch.cat([torch.arange(n) for n in row]) for row in self.lengths]
        return make_tokens(model.config, torch.stack(rows), documents=self.documents)

    @property
    def documents(self) -> Tensor:
        rows = [torch.repeat_interleave(torch.tensor(row)) for row in self.lengths]
        return torch.stack(rows)


def batch_of(lengths: list[list[int]], config_width: int = 64) -> Packed:
    shape = (len(lengths), S)
    weight = torch.randn(*shape, config_width, dtype=torch.float64)
    return Packed(lengths, torch.randint(0, 96, shape), weight)


def trained(
    model: Llama, run: Callable[[], list[tuple[Tensor, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs in order and the gradients of all parameters that have one."""
    model.zero_grad(set_to_none=True)
    pairs = run()
    torch.stack([(out * weight).sum() for out, weight in pairs]).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat([out.detach().flatten() for out, _ in pairs]), gradients


def packed(
    model: Llama,
    batch: Packed,
    plan: LayerPlan,
    call: Call = plain_call,
    tokens: Tokens | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    def run() -> list[tuple[Tensor, Tensor]]:
        (out,) = model(batch.ids, tokens or batch.tokens(model), plan, call).values()
        return [(out, batch.weight)]

    return trained(model, run)


def one_by_one(model: Llama, batch: Packed, plan: LayerPlan) -> tuple[Tensor, dict[str, Tensor]]:
    def run() -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for row, lengths in enumerate(batch.lengths):
            start = 0
            for length in lengths:
                part = slice(start, start + length)
                tokens = make_tokens(model.config, torch.arange(length)[None])
                own = LayerPlan(visits_of(plan, row, start, length), plan.exits)
                (out,) = model(batch.ids[row, part][None], tokens, own).values()
                pairs.append((out[0], batch.weight[row, part]))
                start += length
        return pairs

    return trained(model, run)


def visits_of(plan: LayerPlan, row: int, start: int, length: int) -> tuple[Visit, ...]:
    """Return what of a plan concerns one document: `length` positions of a row from `start` on."""
    visits = []
    for visit in plan.visits:
        selection = Selection() if visit.gate is None else visit.gate(torch.empty(0))
        gate = None
        if selection.rows is not None and row not in selection.rows:
            continue
        if selection.tokens is not None:
            own = selection.tokens[row] - start
            own = own[(own >= 0) & (own < length)]
            if not len(own):
                continue
            gate = Picks(own[None])
        visits.append(replace(visit, gate=gate))
    return tuple(visits)


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(found[0], expected[0], **EXACT)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, **EXACT, msg=name)


@every_packing
@pytest.mark.parametrize("variant", ["grouped heads", "a head each", "one kv head", "smollm2"])
def test_packed_documents_train_as_one_by_one(lengths: list[list[int]], variant: str) -> None:
    config = tiny_config(**VARIANTS[variant])
    model, batch = tiny_llama(config), batch_of(lengths, config.hidden_size)
    assert_same(packed(model, batch, full(LAYERS)), one_by_one(model, batch, full(LAYERS)))


@every_packing
def test_rows_that_layer_dropout_keeps_have_their_own_documents(lengths: list[list[int]]) -> None:
    model, batch = tiny_llama(), batch_of(lengths)
    kept = [None, torch.tensor([1, 2]), torch.tensor([0]), torch.tensor([0, 2])]
    plan = dropped(kept)
    assert_same(packed(model, batch, plan), one_by_one(model, batch, plan))


@every_packing
def test_positions_that_a_router_picks_stay_in_their_documents(lengths: list[list[int]]) -> None:
    model, batch = tiny_llama(), batch_of(lengths)
    picks = torch.rand(3, S).topk(10).indices.sort().values
    plan = LayerPlan((Visit(0), Visit(1, gate=Picks(picks)), Visit(2), Visit(3)), (LAYERS,))
    assert_same(packed(model, batch, plan), one_by_one(model, batch, plan))


def test_recomputing_packed_documents_changes_nothing() -> None:
    model, batch = tiny_llama(), batch_of(PACKINGS["drawn"])
    kept, again = (
        packed(model, batch, full(LAYERS), call) for call in (plain_call, recomputed_call)
    )
    assert torch.equal(kept[0], again[0])
    assert all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


def test_a_mask_trains_what_documents_one_at_a_time_train() -> None:
    model, batch = tiny_llama(), batch_of(PACKINGS["drawn"])
    mask = document_mask(batch.documents)
    slow = replace(batch.tokens(model), documents=None, mask=mask)
    fast = packed(model, batch, full(LAYERS))
    assert_same(fast, packed(model, batch, full(LAYERS), tokens=slow))
