"""Self-speculation with drafts that are no early exit: branches or layers left out, reordered."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from inference.decoding_plan import split
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.self_speculative import self_speculative
from models.config import LlamaConfig
from models.llama import Llama
from models.plan import LayerPlan, Parts, Visit, full, ordered, without
from tests.tiny import tiny_config

Quiet = Callable[..., Llama]
PROMPT = [3, 14, 15, 92, 65, 35, 89]
SIX = tiny_config(hidden_size=32, intermediate_size=48, num_hidden_layers=6)
DRAFTS = {
    "branches": without(6, attn=[1, 3, 4], ffn=[2, 4, 5]),
    "last branch": without(6, ffn=[5]),
    "first branch": without(6, attn=[0]),
    "every third layer": ordered([0, 3, 5], num_layers=6),
    "own exit": replace(without(6, attn=[2, 3], ffn=[1]), exits=(4,)),
    "swapped": ordered([1, 0, 2], num_layers=6),
    "a branch again": LayerPlan((Visit(0), Visit(1), Visit(0, Parts.FFN)), (2,)),
}
every_draft = pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS.keys())


def _oracle(model: Llama, settings: Settings) -> list[int]:
    plan = full(model.config.num_hidden_layers)
    return Generation(tuple(autoregressive(model, PROMPT, plan=plan, settings=settings))).token_ids


def _speculated(
    model: Llama, draft: LayerPlan, length: int, settings: Settings, confidence: float = 0.0
) -> Generation:
    rounds = self_speculative(
        model,
        PROMPT,
        draft=draft,
        num_speculations=length,
        settings=settings,
        draft_confidence=confidence,
    )
    return Generation(tuple(rounds))


def _random_draft(rng: random.Random, config: LlamaConfig) -> LayerPlan:
    """Return a draft of branches or layers left out, in order or not, with an exit of its own."""
    depth = config.num_hidden_layers
    layers = range(depth)
    while True:
        if rng.random() < 0.6:
            attn, ffn = (rng.sample(layers, rng.randrange(depth)) for _ in range(2))
            plan = without(depth, attn=attn, ffn=ffn)
        else:
            chosen = rng.sample(layers, rng.randint(1, depth))
            plan = ordered(chosen if rng.random() < 0.3 else sorted(chosen), num_layers=depth)
        plan = replace(plan, exits=(rng.choice([depth, rng.randint(1, depth)]),))
        lowest = min((visit.layer for visit in plan.visits), default=depth)
        if lowest < plan.exits[0] and plan != full(depth):
            return plan


@pytest.mark.parametrize("seed", range(16))
def test_greedy_tokens_with_any_draft_are_those_of_plain_decoding(
    quiet_llama: Quiet, seed: int
) -> None:
    rng = random.Random(seed)
    model = quiet_llama(rng.choice([1.0, 0.2, 0.02]), config=SIX, seed=seed)
    settings = Settings(max_new_tokens=rng.choice([9, 20]))
    expected = _oracle(model, settings)
    for _ in range(6):
        draft, length = _random_draft(rng, SIX), rng.randint(1, 8)
        confidence = rng.choice([0.0, 0.05, 0.5])
        generation = _speculated(model, draft, length, settings, confidence)
        assert generation.token_ids == expected, (draft, length, confidence)


def test_random_drafts_are_accepted_in_all_numbers(quiet_llama: Quiet) -> None:
    rng, counts = random.Random(0), Counter[int]()
    model = quiet_llama(0.05, config=SIX)
    for _ in range(20):
        draft = _random_draft(rng, SIX)
        counts.update(_speculated(model, draft, 3, Settings(max_new_tokens=12)).accept_counts)
    assert min(counts[accepted] for accepted in range(4)) > 0


@every_draft
def test_what_leaves_the_stream_as_it_is_accepts_every_draft(
    quiet_llama: Quiet, draft: LayerPlan
) -> None:
    # All layers add nothing, so every plan drafts what the model says.
    model = quiet_llama(0.0, above=0, config=SIX)
    generation = _speculated(model, draft, 4, Settings(max_new_tokens=16))
    assert generation.accept_counts == generation.draft_counts == [4, 4, 4]


def test_the_first_round_of_such_a_draft_only_reads_the_prompt(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0, config=SIX)
    first = _speculated(model, DRAFTS["branches"], 4, Settings(max_new_tokens=9)).rounds[0]
    assert (len(first.tokens), first.drafted, first.accepted) == (1, 0, 0)


@pytest.mark.parametrize(
    "same",
    [
        full(6, exits=(1, 2)),
        ordered([0, 1], num_layers=6),
        without(6, attn=range(2, 6), ffn=range(2, 6)),
        LayerPlan((Visit(0), Visit(1), Visit(5, Parts.FFN)), (2,)),
    ],
    ids=["deeper visits unused", "two layers", "branches above skipped", "visits above the exit"],
)
def test_a_whole_prefix_is_the_early_exit_however_it_is_written(
    quiet_llama: Quiet, same: LayerPlan
) -> None:
    calls = []
    for draft in (full(2), same):
        model = quiet_llama(0.1, config=SIX)
        seen = _watch(model)
        generation = _speculated(model, draft, 3, Settings(max_new_tokens=12))
        calls.append((seen, [(each.tokens, each.drafted) for each in generation.rounds]))
    assert calls[0] == calls[1]


def _watch(model: Llama) -> list[tuple[int, Parts, int]]:
    """Record (layer, parts, positions) of every call of a layer from now on."""
    calls: list[tuple[int, Parts, int]] = []
    for name, layer in model.layers.items():

        def hook(
            _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], layer: int = int(name)
        ) -> None:
            calls.append((layer, named["parts"], arguments[0].shape[1]))

        layer.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


@every_draft
@pytest.mark.parametrize("quiet", [0.05, 1.0])
def test_a_shared_layer_runs_once_on_a_token_and_another_once_more_for_each_draft(
    quiet_llama: Quiet, draft: LayerPlan, quiet: float
) -> None:
    model = quiet_llama(quiet, config=SIX)
    calls = _watch(model)
    generation = _speculated(model, draft, 3, Settings(max_new_tokens=17))
    positions, times = Counter[tuple[int, Parts]](), Counter[tuple[int, Parts]]()
    for layer, parts, count in calls:
        positions[layer, parts] += count
        times[layer, parts] += 1
    phases, drafted, rounds = split(SIX, draft), sum(generation.draft_counts), generation.rounds
    once = len(PROMPT) - 1 + sum(1 + each.drafted for each in rounds)
    expected = Counter({(layer, Parts.BOTH): once for layer in range(6)})
    passes = Counter({(visit.layer, Parts.BOTH): len(rounds) for visit in phases.verify.visits})
    passes += Counter({(visit.layer, Parts.BOTH): len(rounds) for visit in phases.shared.visits})
    for visit in phases.shared.visits:
        passes[visit.layer, visit.parts] += drafted  # one position each
    for visit in phases.draft_only.visits:
        expected[visit.layer, visit.parts] += drafted
        passes[visit.layer, visit.parts] += drafted
    assert positions == expected
    assert times == passes


@every_draft
def test_after_each_round_the_cache_is_that_of_plain_decoding(
    quiet_llama: Quiet, draft: LayerPlan
) -> None:
    model = quiet_llama(0.1, config=SIX)
    caches = list[Any]()
    for layer in model.layers.values():
        layer.register_forward_pre_hook(
            lambda _module, _arguments, named: caches.append(named["tokens"].cache),
            with_kwargs=True,
        )
    settings = Settings(max_new_tokens=20)
    _oracle(model, settings)
    plain, emitted = caches[-1], 0
    for each in self_speculative(model, PROMPT, draft=draft, num_speculations=3, settings=settings):
        emitted += len(each.tokens)
        held = len(PROMPT) + emitted - 1
        assert set(caches[-1].lengths.values()) == {held}
        for layer in range(6):
            for ours, theirs in zip(_held(caches[-1], layer), _held(plain, layer), strict=True):
                torch.testing.assert_close(ours, theirs[:, :, :held], rtol=0, atol=1e-12)


def _held(cache: Any, layer: int) -> Any:
    """Return the keys and values (1, G, T, E) of a layer: what appending nothing returns."""
    nothing = torch.empty(1, SIX.kv_heads, 0, SIX.head_width, dtype=torch.float64)
    with torch.inference_mode():
        return cache.append(layer, nothing, nothing)


@pytest.mark.parametrize("length", [2, 5])
def test_an_end_of_sequence_anywhere_ends_it_there(quiet_llama: Quiet, length: int) -> None:
    model = quiet_llama(0.1, config=SIX)
    everything = _oracle(model, Settings(max_new_tokens=16))
    for late, early in zip(everything[1:], everything, strict=False):
        settings = Settings(max_new_tokens=16, eos_ids=frozenset({late, early}))
        expected = _oracle(model, settings)
        for draft in (DRAFTS["branches"], DRAFTS["last branch"]):
            generation = _speculated(model, draft, length, settings)
            assert generation.token_ids == expected
            for each in generation.rounds:
                assert each.accepted <= min(each.drafted, len(each.tokens))


@every_draft
def test_never_more_than_was_asked_for_up_to_a_full_context(
    quiet_llama: Quiet, draft: LayerPlan
) -> None:
    model = quiet_llama(0.1, config=replace(SIX, max_position_embeddings=32))
    for count in (1, 2, 3, 32 - len(PROMPT)):
        settings = Settings(max_new_tokens=count)
        expected = _oracle(model, settings)
        for length in (1, 4, 8):
            assert _speculated(model, draft, length, settings).token_ids == expected


def test_a_confident_stop_ends_the_draft_of_any_plan(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(0.1, config=SIX), Settings(max_new_tokens=24)
    always = _speculated(model, DRAFTS["branches"], 6, settings)
    stopping = _speculated(model, DRAFTS["branches"], 6, settings, confidence=0.99)
    assert stopping.token_ids == always.token_ids == _oracle(model, settings)
    assert sum(stopping.draft_counts) < sum(always.draft_counts)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (full(6), "runs all 6 layers"),
        (full(0), r"exits at \[0\], the model has layers 0\.\.5 and exits 1\.\.6"),
        (without(8, attn=[1]), "make the plan for 6 layers"),
        (ordered([0, 2, 2], num_layers=6), "visits layer 2's attention 2 times"),
    ],
    ids=["everything", "nothing", "another depth", "twice"],
)
def test_a_plan_that_is_no_draft_here_is_refused_before_anything_runs(
    quiet_llama: Quiet, draft: LayerPlan, message: str
) -> None:
    model = quiet_llama(1.0, config=SIX)
    calls = _watch(model)
    with pytest.raises(ValueError, match=message):
        _speculated(model, draft, 4, Settings())
    assert calls == []
