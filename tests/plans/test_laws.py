"""The laws that every maker of plans keeps. A new one joins by a line in PRODUCERS."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from models.llama import Llama
from models.plan import (
    LayerPlan,
    Parts,
    Rows,
    Visit,
    dropped,
    full,
    ordered,
    shared_prefix,
    without,
)
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama
from trainer.curriculum import active_exits
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import plan_step
from trainer.recipe_config import ExitLossConfig, LayerDropoutConfig

LAYERS, ROWS, LENGTH, STEPS = 4, 4, 12, 12
ROTATING = ExitLossConfig(e_scale=0.5, curriculum="rotational", rotation=LAYERS - 1)


@dataclass(frozen=True)
class Producer:
    """A maker of plans: what it makes at a step for a microbatch, and when its knob is neutral."""

    make: Callable[[int, int], LayerPlan]
    neutral: LayerPlan
    exits: tuple[int, ...] = (LAYERS,)


def drop(config: LayerDropoutConfig | None, exits: tuple[int, ...] = ()) -> Producer:
    def make(step: int, microbatch: int, section: LayerDropoutConfig | None = config) -> LayerPlan:
        return plan_step(
            section,
            num_layers=LAYERS,
            step=step,
            total_steps=STEPS,
            seed=5,
            microbatch=microbatch,
            rows=ROWS,
            exits=exits,
        )

    off = config and replace(config, max_prob=0.0)
    return Producer(make, make(0, 0, off), exits or (LAYERS,))


def fixed(plan: LayerPlan, neutral: LayerPlan) -> Producer:
    return Producer(lambda step, microbatch: plan, neutral, plan.exits)


PRODUCERS = {
    "full": fixed(full(LAYERS), full(LAYERS)),
    "exits": fixed(full(LAYERS, exits=(1, 3, 4)), full(LAYERS, exits=(LAYERS,))),
    "early exit": fixed(full(2), full(LAYERS)),
    "ordered": fixed(
        ordered((2, 0, 3), num_layers=LAYERS), ordered(range(LAYERS), num_layers=LAYERS)
    ),
    "without": fixed(without(LAYERS, attn={1, 2}, ffn={2, 3}), without(LAYERS)),
    "dropped": fixed(
        dropped([None, torch.tensor([1]), torch.tensor([], dtype=torch.int64), None]),
        dropped([None] * LAYERS),
    ),
    "no dropout": drop(None),
    "dropout per sample": drop(LayerDropoutConfig(max_prob=0.5, curve="uniform")),
    "dropout per batch": drop(
        LayerDropoutConfig(max_prob=0.5, curve="uniform", granularity="batch")
    ),
    "dropout as published": drop(LayerDropoutConfig(max_prob=0.9, over_time="exp")),
    "dropout and exits": drop(LayerDropoutConfig(max_prob=0.6, curve="linear"), (1, 2, 3, 4)),
}
every_producer = pytest.mark.parametrize("producer", PRODUCERS.values(), ids=PRODUCERS.keys())


def rows_of(visit: Visit) -> list[int]:
    assert visit.gate is None or isinstance(visit.gate, Rows)
    return list(range(ROWS)) if visit.gate is None else visit.gate.rows.tolist()


def spelled(plan: LayerPlan) -> tuple[object, ...]:
    """Return a plan as data that compares by value, rows included."""
    visits = tuple((v.layer, v.parts, v.gate is None, tuple(rows_of(v))) for v in plan.visits)
    return visits, plan.exits


def packed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, positions and document ids, each (B, S): documents end elsewhere in each row."""
    ids = torch.randint(96, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    cuts = torch.tensor([[3, 9], [6, 7], [1, 11], [12, 12]])
    documents = (torch.arange(LENGTH)[None] >= cuts[:, :1]).long()
    documents += torch.arange(LENGTH)[None] >= cuts[:, 1:]
    starts = torch.stack([documents.eq(d).long().argmax(1) for d in range(3)], 1)  # (B, 3)
    return ids, torch.arange(LENGTH) - starts.gather(1, documents), documents


def run(model: Llama, plan: LayerPlan, rows: slice = slice(None)) -> dict[int, Tensor]:
    ids, positions, documents = (x[rows] for x in packed_batch())
    return model(ids, make_tokens(model.config, positions, documents=documents), plan)


@every_producer
def test_law_1_neutral_means_full(producer: Producer) -> None:
    assert producer.neutral == full(LAYERS, exits=producer.neutral.exits)


@every_producer
def test_law_2_all_microbatches_of_a_step_visit_the_same_layers_with_as_many_rows(
    producer: Producer,
) -> None:
    for step in range(STEPS):
        plans = [producer.make(step, microbatch) for microbatch in range(8)]
        assert len({plan.signature for plan in plans}) == 1
        assert {plan.exits for plan in plans} == {producer.exits}


def test_law_2_which_rows_survive_is_each_microbatchs_own_draw() -> None:
    producer = PRODUCERS["dropout per sample"]
    chosen = [{spelled(producer.make(step, g)) for g in range(8)} for step in range(STEPS)]
    assert sum(len(different) > 1 for different in chosen) > STEPS / 2


@every_producer
def test_law_2_the_global_batch_is_the_same_on_any_number_of_ranks(producer: Producer) -> None:
    def on_ranks(size: int) -> dict[tuple[int, int], object]:
        # Each rank makes the plans of its own microbatches only, step after step.
        return {
            (step, g): spelled(producer.make(step, g))
            for rank in range(size)
            for step in range(STEPS)
            for g in range(rank, 8, size)
        }

    assert on_ranks(1) == on_ranks(2) == on_ranks(4)


@every_producer
def test_law_3_what_is_not_visited_passes_through_and_gets_no_gradient(producer: Producer) -> None:
    model = tiny_llama()
    for step in range(3):
        plan = producer.make(step, 0)
        clean = run(model, plan)
        sum(h.sum() for h in clean.values()).backward()  # type: ignore[union-attr]
        needed = {v.layer: v.parts for v in plan.visits if v.layer < max(plan.exits)}
        broken = tiny_llama()
        for (name, parameter), twin in zip(
            model.named_parameters(), broken.parameters(), strict=True
        ):
            if not name.startswith("model.layers."):
                continue
            branch = Parts.FFN if "mlp" in name or "post_attention" in name else Parts.ATTN
            reached = branch in needed.get(int(name.split(".")[2]), Parts(0))
            assert reached == (parameter.grad is not None and bool(parameter.grad.any())), name
            if not reached:
                twin.data.fill_(float("nan"))
        poisoned = run(broken, plan)
        assert all(torch.equal(clean[e], poisoned[e]) for e in plan.exits)
        model.zero_grad()


@every_producer
def test_law_4_each_row_of_a_packed_batch_runs_as_if_it_were_alone(producer: Producer) -> None:
    model = tiny_llama()
    for step in range(3):
        plan = producer.make(step, 1)
        together = run(model, plan)
        for row in range(ROWS):
            own = tuple(replace(v, gate=None) for v in plan.visits if row in rows_of(v))
            alone = run(model, LayerPlan(own, plan.exits), slice(row, row + 1))
            for e in plan.exits:
                torch.testing.assert_close(together[e][row], alone[e][0], rtol=0, atol=1e-12)


@every_producer
def test_what_a_plan_shares_with_the_full_one_is_the_same_stream(producer: Producer) -> None:
    model = tiny_llama()
    for step in range(3):
        plan = producer.make(step, 0)
        k = shared_prefix(plan, full(LAYERS))
        states = run(model, full(LAYERS, exits=(k,)))[k]
        rest = LayerPlan(plan.visits[k:], plan.exits[-1:])
        positions, documents = packed_batch()[1:]
        tokens = make_tokens(model.config, positions, documents=documents)
        done = model(states, tokens, rest)
        assert torch.equal(done[plan.exits[-1]], run(model, plan)[plan.exits[-1]])


@every_producer
def test_law_5_a_plan_is_a_function_of_what_it_decides(producer: Producer) -> None:
    keys = [(step, microbatch) for step in range(STEPS) for microbatch in range(4)]
    forward = {key: spelled(producer.make(*key)) for key in keys}
    torch.manual_seed(123)
    random.seed(123)
    assert {key: spelled(producer.make(*key)) for key in reversed(keys)} == forward


@every_producer
def test_law_5_making_a_plan_leaves_the_global_generators_alone(producer: Producer) -> None:
    before = torch.get_rng_state(), random.getstate()
    for step in range(STEPS):
        producer.make(step, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_every_block_gets_gradient_over_one_rotation_of_the_curriculum_with_dropout(
    granularity: str,
) -> None:
    dropout = LayerDropoutConfig(max_prob=0.3, granularity=granularity)  # type: ignore[arg-type]
    model = tiny_llama(tiny_config(attention_bias=True, mlp_bias=True))
    norms: dict[str, list[float]] = {name: [] for name, _ in model.named_parameters()}
    for step in range(ROTATING.period):
        model.zero_grad()
        weights = exit_weights(ROTATING, LAYERS, step, STEPS)
        plan = plan_step(
            dropout,
            num_layers=LAYERS,
            step=step,
            total_steps=STEPS,
            seed=0,
            microbatch=0,
            rows=ROWS,
            exits=tuple(weights),
        )
        for e, h in run(model, plan).items():
            logits = model.unembed(h)
            (weights[e] * logits.logsumexp(-1).sum()).backward(retain_graph=True)
        for name, parameter in model.named_parameters():
            norms[name].append(0.0 if parameter.grad is None else float(parameter.grad.norm()))
    assert [name for name, seen in norms.items() if max(seen) < 1e-6] == []


def test_the_last_block_gets_gradient_in_every_step_without_dropout() -> None:
    for step in range(ROTATING.period):
        model = tiny_llama()
        exits = active_exits(ROTATING, LAYERS, step, STEPS)
        weights = exit_weights(ROTATING, LAYERS, step, STEPS)
        assert set(weights) <= set(exits)
        hiddens = run(model, full(LAYERS, exits=tuple(weights)))
        total = sum(w * model.unembed(hiddens[e]).logsumexp(-1).sum() for e, w in weights.items())
        assert isinstance(total, Tensor)
        total.backward()
        last = model.layers[str(LAYERS - 1)]
        assert all(p.grad is not None and bool(p.grad.any()) for p in last.parameters())
