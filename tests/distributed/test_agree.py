import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.plan import LayerPlan, Visit, dropped, full
from parallel.agree import agree, agree_on_settings
from parallel.config import ParallelConfig
from parallel.world import start
from tests.distributed.recipe import make_engine, microbatch, model_config
from tests.ranks import RankError, run_ranks
from trainer.step import train_step

pytestmark = pytest.mark.ranks
NOBODY = torch.tensor([], dtype=torch.long)


def _agree(of_rank: list[LayerPlan], shapes: list[tuple[int, ...]]) -> str:
    rank = dist.get_rank()
    agree(17, [of_rank[rank]], [shapes[rank]], valid_tokens=5 + rank)
    return ""


def _message(of_rank: list[LayerPlan], shapes: list[tuple[int, ...]] | None = None) -> str:
    with pytest.raises(RankError) as error:
        run_ranks(_agree, of_rank, shapes or [(4, 8)] * len(of_rank), world=len(of_rank))
    return str(error.value).strip().splitlines()[-1]


def test_equal_plans_agree_on_the_sum_of_tokens_and_on_stopping() -> None:
    def body() -> Tensor:
        rank = dist.get_rank()
        rows = torch.tensor([rank, 3])  # which rows is each rank's own affair, how many is not
        agreed = agree(0, [dropped([rows])], [(4, 8)], valid_tokens=10 + rank, stop=rank == 1)
        return torch.tensor([agreed.valid_tokens, int(agreed.stop)])

    for result in run_ranks(body, world=2):
        assert result.tolist() == [21, 1]


def test_different_layers_in_equal_number_are_caught() -> None:
    message = _message([dropped([None, NOBODY, None]), dropped([None, None, NOBODY])])
    assert "step 17" in message
    assert "rank 1 and rank 0 disagree at layer 1" in message


def test_a_layer_that_one_rank_leaves_out_is_named() -> None:
    message = _message([full(3), LayerPlan((Visit(0), Visit(1)), (3,))])
    assert "at layer 2" in message
    assert "rank 1 goes on with no further visit" in message


def test_another_number_of_rows_is_caught() -> None:
    message = _message([dropped([torch.tensor([0])]), dropped([torch.tensor([0, 1])])])
    assert "(2 rows)" in message
    assert "(1 rows)" in message


def test_the_rank_that_differs_from_three_others_is_named() -> None:
    plans = [full(3), full(3), dropped([None, NOBODY, None]), full(3)]
    assert "rank 2 and rank 0 disagree at layer 1" in _message(plans)


def test_other_exits_are_caught() -> None:
    assert "exits (2, 3) against (1, 3)" in _message([full(3, exits=(1, 3)), full(3, exits=(2, 3))])


def test_an_unequal_batch_is_caught() -> None:
    assert "batch shape (3, 8) against (4, 8)" in _message([full(3)] * 2, [(4, 8), (3, 8)])


def _train_with_own_plan() -> float:
    """On a rank: train a step whose plan drops layer 1 on rank 0 and layer 2 on rank 1."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    survivors = [None] * 5
    survivors[1 + world.rank] = NOBODY
    before = {n: p.to_local().clone() for n, p in engine.model.named_parameters()}
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 and rank 0 disagree at layer 1"):
        train_step(
            engine,
            [microbatch(0, world.rank)],
            [dropped(survivors)],
            {5: 1.0},
            step=0,
            learning_rate=0.1,
            clip_norm=None,
            chunk_tokens=1000,
            device=world.device,
        )
    assert all(torch.equal(before[n], p.to_local()) for n, p in engine.model.named_parameters())
    return time.monotonic() - began


def test_a_training_step_stops_on_every_rank_within_seconds() -> None:
    assert max(run_ranks(_train_with_own_plan, world=2)) < 20


def _train_on_infinite_weights() -> str:
    """On a rank: rank 1 alone holds the element that makes its loss infinite."""
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    if world.rank == 1:
        with torch.no_grad():
            engine.model.model.norm.weight.to_local().fill_(float("inf"))
    before = engine.model.lm_head.weight.to_local().clone()
    with pytest.raises(RuntimeError) as error:
        train_step(
            engine,
            [microbatch(0, world.rank)],
            [full(5)],
            {5: 1.0},
            step=3,
            learning_rate=0.1,
            clip_norm=None,
            chunk_tokens=1000,
            device=world.device,
        )
    assert torch.equal(before, engine.model.lm_head.weight.to_local())
    return str(error.value)


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update() -> None:
    for message in run_ranks(_train_on_infinite_weights, world=2):
        assert message.startswith("step 3: the loss at exit 5 is")


def _compare(of_rank: list[dict[str, object]]) -> str:
    agree_on_settings("config", of_rank[dist.get_rank()])
    return "agreed"


def test_equal_settings_agree_in_any_order() -> None:
    of_rank = [{"a": 1, "b": None}, {"b": None, "a": 1}]
    assert run_ranks(_compare, of_rank) == ["agreed", "agreed"]


def test_a_setting_that_differs_is_named_with_its_rank_and_both_values() -> None:
    of_rank = [{"seed": 1, "lr": 0.1}, {"seed": 1, "lr": 0.1}, {"seed": 1, "lr": 0.2}]
    with pytest.raises(RankError) as error:
        run_ranks(_compare, of_rank, world=3)
    assert (
        "rank 2 was started with another config than rank 0: lr is 0.2 there but 0.1 on rank 0; "
        "give every rank the same command line"
    ) in str(error.value)


def test_a_setting_that_one_rank_lacks_is_named() -> None:
    with pytest.raises(RankError, match="spikes is None there but 'skip' on rank 0"):
        run_ranks(_compare, [{"spikes": "skip"}, {}])
    with pytest.raises(RankError, match="b is 2 there but None on rank 0"):
        run_ranks(_compare, [{"a": 1}, {"a": 1, "b": 2}])


def _agree_on_what_was_left_out() -> str:
    agree(5, [full(3)], [(4, 8)], valid_tokens=5, left_out=dist.get_rank())
    return ""


def test_ranks_that_left_out_other_updates_are_told_apart() -> None:
    with pytest.raises(RankError, match="step 5: rank 1 has left out 1 updates but rank 0 0"):
        run_ranks(_agree_on_what_was_left_out)
