import pytest
import torch

from benchmarks.exit_loss import (
    METHODS,
    MODEL,
    POSITIONS,
    RECIPE,
    head_only,
    ideal_ratio,
    make_hiddens,
    measure_head,
    recipe_weights,
)
from models.flops import count_parameters


def test_the_head_is_the_share_of_the_layers_that_it_is_in_llama_7b() -> None:
    count = count_parameters(MODEL)
    assert count.head / count.layers == pytest.approx(131_072_000 / 6_476_005_376, rel=0.02)


def test_the_plain_step_has_the_last_exit_only_and_the_recipe_four_or_five() -> None:
    assert list(recipe_weights(None)) == [32]
    assert {len(recipe_weights(step)) for step in range(RECIPE.period)} == {4, 5}
    assert ideal_ratio() == pytest.approx(1.07, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_same_gradient_of_the_head(method: str) -> None:
    model, twin = head_only(300), head_only(300)
    labels = torch.arange(POSITIONS)[None]
    METHODS[method](model, make_hiddens(3), labels)
    METHODS["all logits, autograd"](twin, make_hiddens(3), labels)
    for p, q in zip(model.head_parameters(), twin.head_parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-6


def test_a_row_says_what_was_measured() -> None:
    rows = measure_head(300, 2)
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["exits"] == 2 and row["vocabulary"] == 300 for row in rows)
    assert all(row["peak_mib"] > 0 and row["cpu_seconds"] > 0 for row in rows)
