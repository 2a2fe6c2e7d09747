"""Sampled continuations against their exact probabilities, enumerated from the model's logits."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.adaptive import adaptive
from inference.batch import BatchSettings, generate_batch
from inference.controller import Controller
from inference.generate import autoregressive
from inference.generation import Decode, Generation, Settings
from inference.sample import SamplingConfig
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import LayerPlan, Parts, Visit, full, without
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

VOCABULARY, PROMPT = 5, [2, 0]
SAMPLES = 1500
FIRST, PARTED = full(1), LayerPlan((Visit(0), Visit(1, Parts.ATTN)), (2,))
TINY = tiny_config(
    vocab_size=VOCABULARY,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    initializer_range=0.6,  # exits that disagree, no token hopeless
)


def _next(model: Llama, prefix: tuple[int, ...], settings: Settings) -> Tensor:
    """Return the exact probabilities (V,) of the next token, processed by transformers."""
    ids = torch.tensor([[*PROMPT, *prefix]])
    tokens = make_tokens(model.config, torch.arange(ids.shape[1])[None])
    logits = model.unembed(model(ids, tokens, full(2))[2])[:, -1]  # (1, V)
    for processor in settings.processors:
        logits = processor(ids, logits)
    sampling = settings.sampling
    logits = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    return logits.softmax(-1)[0]


@torch.no_grad()
def _exact(model: Llama, settings: Settings) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation, those that an end of sequence cuts included."""
    exact, open_ = dict[tuple[int, ...], float](), {(): 1.0}
    while open_:
        prefix, mass = open_.popitem()
        for token, p in enumerate(_next(model, prefix, settings).tolist()):
            longer = (*prefix, token)
            is_over = len(longer) == settings.max_new_tokens or token in settings.eos_ids
            (exact if is_over else open_)[longer] = mass * p
    return exact


def _p_value(counts: Counter[tuple[int, ...]], exact: dict[tuple[int, ...], float]) -> float:
    """Return the chance of a fit as bad as this (Pearson), outcomes expected < 5 times pooled."""
    assert all(exact[outcome] > 0 for outcome in counts)
    total = counts.total()
    cells = [(counts[o], total * p) for o, p in exact.items() if total * p >= 5]
    rare = total - sum(seen for seen, _ in cells), total - sum(mean for _, mean in cells)
    cells += [rare] if rare[1] >= 1 else []
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    half_freedom, half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, half))


def _speculative(drafts: int, draft: LayerPlan = FIRST) -> Callable[[Llama, Settings], Decode]:
    def bind(model: Llama, settings: Settings) -> Decode:
        return lambda prompt: self_speculative(
            model, prompt, draft=draft, num_speculations=drafts, settings=settings
        )

    return bind


def _plain(model: Llama, settings: Settings) -> Decode:
    return lambda prompt: autoregressive(model, prompt, plan=full(2), settings=settings)


def _adaptive(*settings: tuple[int, int, float]) -> Callable[[Llama, Settings], Decode]:
    """Decide for it: these exits, draft lengths and stops in turn, with a look before each."""

    def bind(model: Llama, how: Settings) -> Decode:
        turns = itertools.cycle(settings)
        controller = Controller(2, most=3, share=lambda _: (*next(turns), 1.0, True, True))
        return lambda prompt: adaptive(model, prompt, controller=controller, settings=how)

    return bind


WARM = SamplingConfig(temperature=1.0)
COOL = SamplingConfig(temperature=0.8, top_k=4)
PROCESSORS = [RepetitionPenaltyLogitsProcessor(1.6), MinPLogitsWarper(0.2)]


@pytest.mark.parametrize(
    ("bind", "settings", "length"),
    [
        (_plain, Settings(sampling=WARM), 3),
        (_speculative(1), Settings(sampling=WARM), 3),
        (_speculative(2), Settings(sampling=SamplingConfig(temperature=0.7)), 3),
        (_speculative(4), Settings(sampling=SamplingConfig(temperature=1.0, top_k=3)), 3),
        (_speculative(2), Settings(sampling=SamplingConfig(temperature=1.3, top_p=0.8)), 3),
        (_speculative(2), Settings(sampling=WARM, eos_ids=frozenset([1, 4])), 3),
        (_plain, Settings(sampling=WARM, processors=PROCESSORS), 3),
        (_speculative(2), Settings(sampling=WARM, processors=PROCESSORS), 3),
        (_speculative(2, without(2, attn=[0])), Settings(sampling=WARM), 4),
        (_speculative(2, PARTED), Settings(sampling=COOL, eos_ids=frozenset([4])), 4),
        (_adaptive((1, 2, 0.0), (1, 0, 0.0), (1, 3, 0.4)), Settings(sampling=WARM), 4),
    ],
    ids=[
        "autoregressive", "one draft", "temperature", "top-k", "top-p", "ends of sequence",
        "autoregressive, processed", "processed", "a draft that shares nothing",
        "a draft that shares a layer", "adaptive",
    ],
)  # fmt: skip
def test_the_first_tokens_have_their_exact_joint_distribution(
    bind: Callable[[Llama, Settings], Decode], settings: Settings, length: int
) -> None:
    model, settings = tiny_llama(TINY, seed=3), replace(settings, max_new_tokens=length)
    generations = [
        Generation(tuple(bind(model, replace(settings, seed=seed))(PROMPT)))
        for seed in range(SAMPLES)
    ]
    _check(model, settings, generations, is_drafting=bind is not _plain)


@pytest.mark.parametrize(
    ("drafts", "settings"),
    [
        (0, Settings(sampling=WARM)),
        (1, Settings(sampling=SamplingConfig(temperature=0.7))),
        (2, Settings(sampling=SamplingConfig(temperature=1.3, top_p=0.8))),
        (4, Settings(sampling=SamplingConfig(temperature=1.0, top_k=3))),
        (2, Settings(sampling=WARM, eos_ids=frozenset([1, 4]))),
        (2, Settings(sampling=WARM, processors=PROCESSORS)),
    ],
    ids=["plain", "one draft", "top-p", "top-k", "ends of sequence", "processed"],
)
def test_the_rows_of_a_batch_have_the_exact_joint_distribution(
    drafts: int, settings: Settings
) -> None:
    model, settings = tiny_llama(TINY, seed=3), replace(settings, max_new_tokens=3)
    batch = BatchSettings(rows=100, exit_layer=1 if drafts else None, num_speculations=drafts)
    generations = generate_batch(
        model, [PROMPT] * SAMPLES, batch=batch, settings=settings, seeds=range(SAMPLES)
    )
    _check(model, settings, list(generations), is_drafting=drafts > 0)


def _check(
    model: Llama, settings: Settings, generations: list[Generation], *, is_drafting: bool
) -> None:
    exact = _exact(model, settings)
    assert sum(exact.values()) == pytest.approx(1)
    counts = Counter(tuple(each.token_ids) for each in generations)
    assert _p_value(counts, exact) > 0.01
    if is_drafting:
        accepted = Counter(itertools.chain(*(each.accept_counts for each in generations)))
        assert min(accepted[0], accepted[1]) > SAMPLES / 10  # both branches were taken often
