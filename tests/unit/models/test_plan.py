import pytest
import torch

from models.plan import (
    LayerPlan,
    Parts,
    Rows,
    Selection,
    Visit,
    dropped,
    full,
    ordered,
    shared_prefix,
    without,
)


def ids(*values):
    return torch.tensor(values, dtype=torch.long)


@pytest.mark.parametrize("exits", [(), (2, 1), (2, 2)], ids=str)
def test_exits_that_are_not_ascending_are_refused(exits):
    with pytest.raises(ValueError, match=r"plan\.exits must be ascending"):
        LayerPlan((Visit(0),), exits)


def test_full_visits_every_layer_and_exits_after_the_last():
    assert full(3) == LayerPlan((Visit(0), Visit(1), Visit(2)), (3,))
    assert full(3, start=2, exits=[3]) == LayerPlan((Visit(2),), (3,))


def test_neutral_settings_of_every_maker_give_the_full_plan():
    assert ordered(range(4), num_layers=4) == full(4)
    assert without(4) == full(4)
    assert dropped([None] * 4) == full(4)


def test_a_layer_that_loses_both_branches_is_not_visited():
    plan = without(3, attn=[0, 1], ffn=[1, 2])
    assert plan.visits == (Visit(0, Parts.FFN), Visit(2, Parts.ATTN))


def test_a_layer_without_surviving_rows_is_not_visited():
    plan = dropped([None, ids(), ids(0, 2)], exits=[1, 3])
    assert [v.layer for v in plan.visits] == [0, 2]
    assert plan.visits[1].gate.rows.tolist() == [0, 2]
    assert plan.exits == (1, 3)


def test_an_exit_is_complete_after_the_last_visit_below_it():
    plan = LayerPlan((Visit(0), Visit(3), Visit(1)), (1, 2, 3, 4))
    assert plan.exit_points == {1: [1], 3: [2, 3, 4]}


def test_exits_below_the_first_visit_are_complete_at_once():
    assert full(4, start=2, exits=[1, 2, 4]).exit_points == {0: [1, 2], 2: [4]}


def test_signatures_show_how_many_rows_but_not_which():
    first, second = dropped([None, ids(0, 2)]), dropped([None, ids(1, 3)])
    assert first.signature == second.signature
    assert first.signature != dropped([None, ids(0)]).signature
    assert first.signature != dropped([None, None]).signature


def test_signatures_show_layers_and_order_and_parts():
    plans = [ordered(order, num_layers=3) for order in ([0, 1], [1, 0], [0, 2])]
    plans.append(without(3, attn=[1], ffn=[2]))
    assert len({plan.signature for plan in plans}) == len(plans)


def test_moving_a_plan_moves_the_rows_of_every_gate():
    def learned(h):
        return Selection()

    plan = LayerPlan((Visit(0), Visit(1, gate=Rows(ids(0, 2))), Visit(2, gate=learned)), (3,))
    moved = plan.to(torch.device("meta"))
    assert moved.visits[1].gate.rows.device.type == "meta"
    assert moved.signature == plan.signature
    assert moved.visits[2] is plan.visits[2]


@pytest.mark.parametrize(
    ("plan", "shared"),
    [
        (full(4), 4),
        (full(2), 2),
        (full(6), 4),
        (without(4, attn=[2]), 2),
        (without(4, ffn=[0]), 0),
        (ordered([0, 1, 3], num_layers=4), 2),
        (dropped([None, ids(0, 1), None, None]), 1),
    ],
)
def test_plans_share_their_first_equal_visits(plan, shared):
    assert shared_prefix(plan, full(4)) == shared_prefix(full(4), plan) == shared


def test_a_plan_shares_its_gates_with_itself_only():
    plan, twin = (dropped([None, ids(0, 1), None]) for _ in range(2))
    assert shared_prefix(plan, plan) == 3
    assert shared_prefix(plan, twin) == 1
