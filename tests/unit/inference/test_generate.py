import math

import pytest
import torch

from inference.early_exit import early_exit
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.sample import SamplingConfig
from models.llama import Llama
from models.plan import LayerPlan, full, ordered, without
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

PROMPT = [3, 14, 15, 92, 65]


def _ids(
    model: Llama, plan: LayerPlan, settings: Settings, prompt: list[int] = PROMPT
) -> list[int]:
    rounds = autoregressive(model, prompt, plan=plan, settings=settings)
    return Generation(tuple(rounds)).token_ids


def _recomputed(model: Llama, plan: LayerPlan, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without a cache: everything is run again for each."""
    ids = list(prompt)
    for _ in range(count):
        tokens = make_tokens(model.config, torch.arange(len(ids))[None])
        h = model(torch.tensor([ids]), tokens, plan)[plan.exits[-1]]
        ids.append(int(model.unembed(h)[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "plan",
    [full(4), full(1), full(3), ordered([0, 2, 1, 3], num_layers=4), without(4, attn=[1], ffn=[2])],
    ids=["full", "exit 1", "exit 3", "swapped", "without"],
)
@pytest.mark.parametrize("prompt", [PROMPT, [7]], ids=["five", "one"])
def test_cached_decoding_is_recomputing_everything(plan: LayerPlan, prompt: list[int]) -> None:
    model = tiny_llama()
    decoded = _ids(model, plan, Settings(max_new_tokens=12), prompt)
    assert decoded == _recomputed(model, plan, prompt, 12)


def test_early_exit_is_the_plan_of_the_layers_below_it() -> None:
    model, settings = tiny_llama(), Settings(max_new_tokens=8)
    generation = Generation(tuple(early_exit(model, PROMPT, exit_layer=2, settings=settings)))
    assert generation.token_ids == _ids(model, full(2), settings)
    assert generation.token_ids != _ids(model, full(4), settings)


@pytest.mark.parametrize("exit_layer", [0, 4, -1])
def test_an_exit_outside_the_model_is_refused(exit_layer: int) -> None:
    with pytest.raises(ValueError, match=rf"exit_layer must be in 1\.\.3 .* got {exit_layer}"):
        early_exit(tiny_llama(), PROMPT, exit_layer=exit_layer, settings=Settings())


def test_decoding_ends_with_the_first_end_of_sequence_and_keeps_it() -> None:
    model = tiny_llama()
    everything = _ids(model, full(4), Settings(max_new_tokens=12))
    eos = frozenset({everything[7], everything[4], 95})
    cut = min(everything.index(everything[4]), everything.index(everything[7]))
    settings = Settings(max_new_tokens=12, eos_ids=eos)
    assert _ids(model, full(4), settings) == everything[: cut + 1]


def test_one_new_token_needs_one_pass() -> None:
    model = tiny_llama()
    assert len(_ids(model, full(4), Settings(max_new_tokens=1))) == 1


def test_a_context_may_be_filled_to_its_last_place() -> None:
    model = tiny_llama(tiny_config(max_position_embeddings=16))
    assert len(_ids(model, full(4), Settings(max_new_tokens=11))) == 11


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 10, "10 tokens and max_new_tokens=8, .* context is 16: max_new_tokens=6 fits"),
        ([1] * 20, "20 tokens .* context is 16: shorten it"),
        ([1, 96], r"token ids 1\.\.96, .* vocabulary is 0\.\.95"),
        ([-1, 3], r"token ids -1\.\.3"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(prompt: list[int], message: str) -> None:
    model = tiny_llama(tiny_config(max_position_embeddings=16))
    with pytest.raises(ValueError, match=message):
        _ids(model, full(4), Settings(max_new_tokens=8), prompt)


def test_no_new_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        Settings(max_new_tokens=0)


def test_the_seed_decides_sampled_tokens() -> None:
    model, sampling = tiny_llama(), SamplingConfig(temperature=1.5)
    one, again, other = (
        _ids(model, full(4), Settings(max_new_tokens=16, sampling=sampling, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_sampling_does_not_touch_the_global_generator() -> None:
    model, sampling = tiny_llama(), SamplingConfig(temperature=1.0)
    state = torch.get_rng_state()
    _ids(model, full(4), Settings(max_new_tokens=4, sampling=sampling))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_caller_is_not_in_inference_mode_between_rounds() -> None:
    rounds = autoregressive(tiny_llama(), PROMPT, plan=full(4), settings=Settings())
    next(rounds)
    assert not torch.is_inference_mode_enabled()


def test_a_generation_adds_up_its_rounds() -> None:
    rounds = autoregressive(tiny_llama(), PROMPT, plan=full(4), settings=Settings(max_new_tokens=5))
    generation = Generation(tuple(rounds))
    assert (len(generation.rounds), generation.num_decoded) == (5, 4)
    assert generation.accept_counts == generation.draft_counts == []
    total = sum(each.seconds for each in generation.rounds)
    assert math.isclose(generation.seconds_prefill + generation.seconds_decode, total)
    assert min(each.seconds for each in generation.rounds) > 0
