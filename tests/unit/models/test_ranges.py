from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from models.execute import Call, plain_call
from models.plan import LayerPlan, Parts, Rows, Visit, full
from models.ranges import in_ranges, named
from models.tokens import Tokens, make_tokens
from tests.tiny import tiny_config, tiny_llama

IDS = torch.arange(24).view(2, 12)


def traced(job: Callable[[], object]) -> dict[str, float]:
    """Return the microseconds of each range that the job shows a profiler."""
    with profile() as profiler:
        job()
    return {e.name: e.cpu_time_total for e in profiler.events() if e.is_user_annotation}


def gradients(plan: LayerPlan, call: Call) -> list[Tensor]:
    model = tiny_llama()
    hiddens = model(IDS, make_tokens(tiny_config(), torch.arange(12)[None]), plan, call)
    torch.stack([h.square().sum() for h in hiddens.values()]).sum().backward()
    return [torch.zeros(1) if p.grad is None else p.grad for p in model.parameters()]


def test_a_layer_shows_its_forward_and_its_backward_pass() -> None:
    ranges = traced(lambda: gradients(full(4, exits=(2, 4)), in_ranges(plain_call)))
    assert set(ranges) == {f"{way}layer {layer}" for layer in range(4) for way in ("", "backward ")}
    assert min(ranges.values()) > 0


def test_a_layer_that_is_not_visited_shows_nothing() -> None:
    visits = (Visit(0), Visit(2, gate=Rows(torch.tensor([1]))))
    ranges = traced(lambda: gradients(LayerPlan(visits, exits=(3,)), in_ranges(plain_call)))
    assert set(ranges) == {"layer 0", "backward layer 0", "layer 2", "backward layer 2"}


def test_backward_ranges_of_layers_do_not_overlap() -> None:
    with profile() as profiler:
        gradients(full(4), in_ranges(plain_call))
    spans = {e.name: e.time_range for e in profiler.events() if e.name.startswith("backward")}
    for layer in range(3):
        assert spans[f"backward layer {layer + 1}"].end <= spans[f"backward layer {layer}"].start


def test_without_gradients_there_is_a_forward_range_only() -> None:
    def infer() -> None:
        with torch.no_grad():
            tokens = make_tokens(tiny_config(), torch.arange(12)[None])
            tiny_llama()(IDS, tokens, full(4), in_ranges(plain_call))

    assert set(traced(infer)) == {f"layer {layer}" for layer in range(4)}


def test_a_profiler_changes_no_gradient() -> None:
    plan = full(4, exits=(1, 4))
    plain = gradients(plan, plain_call)
    with profile():
        watched = gradients(plan, in_ranges(plain_call))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_without_a_profiler_the_layer_is_called_as_it_was_given() -> None:
    seen = []

    def call(layer: nn.Module, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
        seen.append(h)
        return h

    h = torch.ones(1, 1, 4, requires_grad=True)
    tokens = make_tokens(tiny_config(), torch.zeros(1, 1, dtype=torch.long))
    out = in_ranges(call)(tiny_llama().layers["0"], h, tokens, Parts.BOTH)
    assert out is h
    assert seen == [h]


@pytest.mark.parametrize("watched", [True, False])
def test_a_named_range_is_shown_when_somebody_watches(watched: bool) -> None:
    def job() -> None:
        with named("a job"):
            torch.ones(1)

    if watched:
        assert set(traced(job)) == {"a job"}
    else:
        job()
        assert traced(lambda: None) == {}
