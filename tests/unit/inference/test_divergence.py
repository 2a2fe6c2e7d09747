from collections.abc import Callable

import pytest
import torch

from inference.divergence import Agreement, compare_tokens, next_logits, rounding
from inference.early_exit import early_exit
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import full

Quiet = Callable[..., Llama]
PROMPT = [3, 14, 15, 92, 65, 35, 89]
SETTINGS = Settings(max_new_tokens=16)


def _expected(model: Llama, prompt: list[int] = PROMPT) -> list[int]:
    rounds = autoregressive(model, prompt, plan=full(4), settings=SETTINGS)
    return Generation(tuple(rounds)).token_ids


def _speculated(model: Llama, exit_layer: int, prompt: list[int] = PROMPT) -> list[int]:
    rounds = self_speculative(
        model, prompt, draft=full(exit_layer), num_speculations=4, settings=SETTINGS
    )
    return Generation(tuple(rounds)).token_ids


def _twins(model: Llama, scale: float) -> tuple[int, int]:
    """Give the model a token that is always almost as likely as one it makes; return both."""
    token = next(each for each in _expected(model) if each != 95)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[95] = model.lm_head.weight[token] * scale
    return token, 95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_self_speculation_is_equal(quiet_llama: Quiet, exit_layer: int, dtype: torch.dtype) -> None:
    model = quiet_llama(0.1, dtype=dtype)
    agreement = compare_tokens(model, PROMPT, _expected(model), _speculated(model, exit_layer))
    assert agreement == Agreement("equal", 16)


def test_a_decoder_that_accepts_wrong_drafts_is_at_fault(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0)
    rounds = early_exit(model, PROMPT, exit_layer=2, settings=SETTINGS)
    expected, found = _expected(model), Generation(tuple(rounds)).token_ids
    agreement = compare_tokens(model, PROMPT, expected, found)
    assert agreement.verdict == "fault"
    assert expected[: agreement.same] == found[: agreement.same]
    assert (agreement.expected, agreement.found) == (
        expected[agreement.same],
        found[agreement.same],
    )
    assert agreement.margin is not None
    assert agreement.tolerance is not None
    assert agreement.margin > 1e6 * agreement.tolerance


@pytest.mark.parametrize("position", [0, 7, 15])
def test_the_margin_is_that_of_the_full_model_after_the_common_tokens(
    quiet_llama: Quiet, position: int
) -> None:
    model = quiet_llama(1.0)
    expected = _expected(model)
    logits = next_logits(model, [*PROMPT, *expected[:position]])
    best, second = logits.topk(2).indices.tolist()
    assert best == expected[position]
    found = [*expected[:position], second, *expected[position + 1 :]]
    agreement = compare_tokens(model, PROMPT, expected, found)
    assert (agreement.verdict, agreement.same) == ("fault", position)
    assert agreement.margin == pytest.approx(float(logits[best] - logits[second]))


@pytest.mark.parametrize(
    ("dtype", "scale", "verdict"),
    [
        (torch.float64, 1.0, "tie"),
        (torch.float64, 1 - 1e-16, "tie"),
        (torch.float64, 1 - 1e-13, "fault"),
        (torch.float32, 1 - 1e-7, "tie"),
        (torch.float32, 1 - 1e-4, "fault"),
        (torch.bfloat16, 1 - 2**-8, "tie"),
        (torch.bfloat16, 0.9, "fault"),
    ],
    ids=str,
)
def test_tokens_as_likely_but_for_rounding_are_a_tie(
    quiet_llama: Quiet, dtype: torch.dtype, scale: float, verdict: str
) -> None:
    model = quiet_llama(1.0, dtype=dtype)
    token, twin = _twins(model, scale)
    expected = _expected(model)
    position = next(i for i, each in enumerate(expected) if each in (token, twin))
    other = token if expected[position] == twin else twin
    agreement = compare_tokens(model, PROMPT, expected, [*expected[:position], other, 1, 2])
    assert (agreement.verdict, agreement.same) == (verdict, position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_in_few_bits_makes_ties_at_most(quiet_llama: Quiet, dtype: torch.dtype) -> None:
    for seed in range(6, 12):
        model = quiet_llama(0.3, above=2, seed=seed, dtype=dtype)
        agreement = compare_tokens(model, PROMPT, _expected(model), _speculated(model, 2))
        assert agreement.verdict in ("equal", "tie"), seed


def test_a_tie_of_two_unlikely_tokens_is_a_fault(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0)
    token, twin = _twins(model, 1.0)
    position = next(i for i, each in enumerate(_expected(model)) if each not in (token, twin))
    common = _expected(model)[:position]
    agreement = compare_tokens(model, PROMPT, [*common, token], [*common, twin])
    assert (agreement.verdict, agreement.margin) == ("fault", 0.0)


def test_ending_early_or_late_is_a_fault(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0)
    expected = _expected(model)
    early = compare_tokens(model, PROMPT, expected, expected[:5])
    assert early == Agreement("fault", 5, expected=expected[5], found=None)
    late = compare_tokens(model, PROMPT, expected[:5], expected)
    assert late == Agreement("fault", 5, expected=None, found=expected[5])


def test_an_id_that_the_model_does_not_have_is_a_fault(quiet_llama: Quiet) -> None:
    assert compare_tokens(quiet_llama(1.0), PROMPT, [1], [96]) == Agreement("fault", 0, 1, 96)


def test_what_is_not_a_number_is_a_fault(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert compare_tokens(model, PROMPT, [1], [2]).verdict == "fault"


def test_the_tolerance_is_a_few_units_of_the_largest_logit() -> None:
    logits = torch.tensor([1.0, -20.0, 3.0])
    units = [rounding(logits.to(d)) / 20 for d in (torch.bfloat16, torch.float32, torch.float64)]
    assert units == [4 * 2**-7, 16 * 2**-23, 16 * 2**-52]
