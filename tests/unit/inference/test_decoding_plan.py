import pytest
import torch

from inference.decoding_plan import check_plan, split
from models.plan import LayerPlan, Parts, Rows, Visit, dropped, full, ordered, without
from tests.tiny import tiny_config

CONFIG = tiny_config()  # 4 layers


@pytest.mark.parametrize(
    ("draft", "k", "draft_only"),
    [
        (full(2), 2, ()),
        (full(3, exits=(1, 3)), 3, ()),
        (full(4, exits=(2,)), 2, ()),
        (ordered([0, 1], num_layers=4), 2, ()),
        (without(4, attn=[3], ffn=[3]), 3, ()),
        (without(4, attn=[2]), 2, (Visit(2, Parts.FFN), Visit(3))),
        (without(3, ffn=[0, 2]), 0, (Visit(0, Parts.ATTN), Visit(1), Visit(2, Parts.ATTN))),
        (ordered([0, 3], num_layers=4), 1, (Visit(3),)),
        (ordered([1, 0, 2], num_layers=3), 0, (Visit(1), Visit(0), Visit(2))),
        (LayerPlan((Visit(0), Visit(2), Visit(1), Visit(3)), (2,)), 1, (Visit(2), Visit(1))),
    ],
)
def test_a_draft_is_cut_where_it_leaves_the_full_plan(
    draft: LayerPlan, k: int, draft_only: tuple[Visit, ...]
) -> None:
    phases = split(CONFIG, draft)
    assert phases.shared == full(k)
    assert phases.draft_only == LayerPlan(draft_only, draft.exits[-1:])
    assert phases.verify == full(4, start=k)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (full(4), "runs all 4 layers as the model does .* strategy=autoregressive"),
        (full(4, exits=(1, 4)), "runs all 4 layers"),
        (LayerPlan((*full(4).visits, Visit(0, Parts.FFN)), (4,)), "runs all 4 layers"),
        (ordered([], num_layers=4), "visits no layer before its exit 4: let it run at least one"),
        (LayerPlan((Visit(2), Visit(3)), (1,)), "visits no layer before its exit 1"),
        (full(0), r"exits at \[0\], the model has layers 0\.\.3 and exits 1\.\.4"),
    ],
)
def test_what_saves_nothing_or_computes_nothing_is_no_draft(draft: LayerPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(CONFIG, draft)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (without(6, attn=[2]), r"visits layers \[0, 1, 2, 3, 4, 5\] .* make the plan for 4 layers"),
        (ordered([0, 4], num_layers=4), r"visits layers \[0, 4\]"),
        (ordered([-1, 2], num_layers=4), r"visits layers \[-1, 2\]"),
        (full(3, exits=(3, 5)), r"exits at \[3, 5\], the model has .* exits 1\.\.4"),
        (full(2, exits=(-1, 2)), r"exits at \[-1, 2\]"),
        (dropped([None, torch.tensor([0])]), "layer 1 has a gate: .* cannot use a KV cache"),
        (ordered([0, 1, 1], num_layers=4), "layer 1's attention 2 times, .* visit it once"),
        (LayerPlan((Visit(2), Visit(2, Parts.ATTN)), (3,)), "layer 2's attention 2 times"),
    ],
)
def test_a_plan_that_cannot_decode_here_is_one_line(plan: LayerPlan, message: str) -> None:
    for check in (check_plan, split):
        with pytest.raises(ValueError, match=message) as refused:
            check(CONFIG, plan)
        assert "\n" not in str(refused.value)


def test_branches_of_a_layer_may_be_visited_apart_and_feed_forward_again() -> None:
    apart = Visit(0, Parts.ATTN), Visit(0, Parts.FFN), Visit(1, Parts.FFN), Visit(1)
    check_plan(CONFIG, LayerPlan(apart, (2,)))


def test_a_gate_is_refused_even_if_it_takes_every_row() -> None:
    with pytest.raises(ValueError, match="layer 0 has a gate"):
        check_plan(CONFIG, LayerPlan((Visit(0, gate=Rows(torch.tensor([0]))),), (1,)))
