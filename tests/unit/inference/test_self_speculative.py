from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.self_speculative import self_speculative
from models.config import LlamaConfig
from models.llama import Llama
from models.plan import full
from tests.tiny import VARIANTS, tiny_config

Quiet = Callable[..., Llama]
PROMPT = [3, 14, 15, 92, 65, 35, 89]
DRAFTS = range(1, 9)


def _oracle(model: Llama, settings: Settings, prompt: list[int] = PROMPT) -> list[int]:
    plan = full(model.config.num_hidden_layers)
    return Generation(tuple(autoregressive(model, prompt, plan=plan, settings=settings))).token_ids


def _speculated(
    model: Llama, exit_layer: int, drafts: int, settings: Settings, prompt: list[int] = PROMPT
) -> Generation:
    rounds = self_speculative(
        model, prompt, draft=full(exit_layer), num_speculations=drafts, settings=settings
    )
    return Generation(tuple(rounds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("quiet", [1.0, 0.1], ids=["random", "quiet"])
@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_greedy_tokens_are_those_of_plain_decoding(
    quiet_llama: Quiet, exit_layer: int, quiet: float, dtype: torch.dtype
) -> None:
    model, settings = quiet_llama(quiet, dtype=dtype), Settings(max_new_tokens=18)
    expected = _oracle(model, settings)
    for drafts in DRAFTS:
        assert _speculated(model, exit_layer, drafts, settings).token_ids == expected, drafts


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_of_the_model_is_lossless(quiet_llama: Quiet, config: LlamaConfig) -> None:
    model, settings = quiet_llama(0.2, config=config, seed=1), Settings(max_new_tokens=18)
    expected = _oracle(model, settings)
    for exit_layer in range(1, config.num_hidden_layers):
        assert _speculated(model, exit_layer, 4, settings).token_ids == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_never_more_than_was_asked_for(quiet_llama: Quiet, count: int, drafts: int) -> None:
    for quiet in (0.0, 0.1, 1.0):
        model, settings = quiet_llama(quiet), Settings(max_new_tokens=count)
        assert _speculated(model, 1, drafts, settings).token_ids == _oracle(model, settings)


@pytest.mark.parametrize("confidence", [0.05, 0.3, 0.99])
def test_stopping_an_unsure_draft_changes_the_rounds_only(
    quiet_llama: Quiet, confidence: float
) -> None:
    model, settings = quiet_llama(0.1), Settings(max_new_tokens=24)
    how = dict(draft=full(2), num_speculations=6, settings=settings)
    always = Generation(tuple(self_speculative(model, PROMPT, **how)))
    stopping = Generation(
        tuple(self_speculative(model, PROMPT, **how, draft_confidence=confidence))
    )
    assert stopping.token_ids == always.token_ids == _oracle(model, settings)
    assert sum(stopping.draft_counts) < sum(always.draft_counts)


def test_one_token_of_a_prompt_is_enough(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(0.1), Settings(max_new_tokens=20)
    assert _speculated(model, 2, 4, settings, [5]).token_ids == _oracle(model, settings, [5])


def test_a_context_may_be_filled_to_its_last_place(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.1, config=tiny_config(max_position_embeddings=32))
    settings = Settings(max_new_tokens=32 - len(PROMPT))
    for drafts in DRAFTS:
        assert _speculated(model, 1, drafts, settings).token_ids == _oracle(model, settings)


@pytest.mark.parametrize("drafts", [2, 5])
def test_an_end_of_sequence_anywhere_ends_it_there(quiet_llama: Quiet, drafts: int) -> None:
    model = quiet_llama(0.1)
    everything = _oracle(model, Settings(max_new_tokens=16))
    for late, early in zip(everything[1:], everything, strict=False):
        settings = Settings(max_new_tokens=16, eos_ids=frozenset({late, early}))
        speculated = _speculated(model, 1, drafts, settings)
        assert speculated.token_ids == _oracle(model, settings)
        for each in speculated.rounds:
            assert each.accepted <= min(each.drafted, len(each.tokens))


def test_drafts_after_an_end_of_sequence_are_not_counted(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.0)  # every draft is right
    tokens = _oracle(model, Settings(max_new_tokens=8))
    settings = Settings(max_new_tokens=8, eos_ids=frozenset({tokens[1]}))
    generation = _speculated(model, 1, 6, settings)
    length = tokens.index(tokens[1]) + 1
    assert (generation.accept_counts, generation.draft_counts) == ([length], [length])


def test_layers_that_do_nothing_above_the_exit_accept_every_draft(quiet_llama: Quiet) -> None:
    generation = _speculated(quiet_llama(0.0, above=2), 2, 4, Settings(max_new_tokens=22))
    assert generation.accept_counts == generation.draft_counts == [4, 4, 4, 4, 1]


def test_the_last_rounds_draft_no_more_than_can_be_used(quiet_llama: Quiet) -> None:
    generation = _speculated(quiet_llama(1.0), 1, 5, Settings(max_new_tokens=9))
    left = 9
    for each in generation.rounds:
        assert each.drafted == min(5, left - 1)
        left -= len(each.tokens)


def _watch(model: Llama) -> list[tuple[int, int, Any]]:
    """Record (layer, positions, cache) of every call of a layer from now on."""
    calls: list[tuple[int, int, Any]] = []
    for name, layer in model.layers.items():

        def hook(
            _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], layer: int = int(name)
        ) -> None:
            calls.append((layer, arguments[0].shape[1], named["tokens"].cache))

        layer.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


@pytest.mark.parametrize("exit_layer", [1, 3])
@pytest.mark.parametrize("quiet", [0.0, 0.1, 1.0])
def test_no_layer_runs_twice_on_a_token(quiet_llama: Quiet, quiet: float, exit_layer: int) -> None:
    model = quiet_llama(quiet)
    calls = _watch(model)
    generation = _speculated(model, exit_layer, 3, Settings(max_new_tokens=17))
    passes = Counter[int]()
    for layer, positions, _ in calls:
        passes[layer] += positions
    once = len(PROMPT) - 1 + sum(1 + each.drafted for each in generation.rounds)
    assert passes == dict.fromkeys(range(4), once)


def test_every_layer_holds_prompt_and_output_but_one_after_each_round(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.1)
    calls = _watch(model)
    emitted = 0
    rounds = self_speculative(
        model, PROMPT, draft=full(2), num_speculations=3, settings=Settings(max_new_tokens=20)
    )
    for each in rounds:
        emitted += len(each.tokens)
        assert set(calls[-1][2].lengths.values()) == {len(PROMPT) + emitted - 1}


def test_an_error_in_the_middle_leaves_the_model_as_it_was(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(0.1), Settings(max_new_tokens=12)
    expected, weights = _oracle(model, settings), model.state_dict()
    calls = _watch(model)

    def fail(*_: object) -> None:
        if len(calls) > 20:
            raise RuntimeError("out of memory")

    handle = model.layers["3"].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _speculated(model, 2, 4, settings)
    handle.remove()
    assert model.state_dict().keys() == weights.keys()
    assert _speculated(model, 2, 4, settings).token_ids == _oracle(model, settings) == expected


def test_drafting_nothing_is_refused(quiet_llama: Quiet) -> None:
    with pytest.raises(ValueError, match="num_speculations must be at least 1, got 0"):
        _speculated(quiet_llama(1.0), 2, 0, Settings())


def test_the_caller_is_not_in_inference_mode_between_rounds(quiet_llama: Quiet) -> None:
    rounds = self_speculative(
        quiet_llama(1.0), PROMPT, draft=full(2), num_speculations=2, settings=Settings()
    )
    next(rounds)
    assert not torch.is_inference_mode_enabled()
