"""Whatever is decided, and whenever, tokens are the full model's."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from inference.adaptive import adaptive
from inference.controller import Controller, Share
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.laps import Laps
from inference.sample import SamplingConfig
from inference.shadow import Seen, shadow
from inference.workspace import prepare
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config

Quiet = Callable[..., Llama]
PROMPT = [3, 14, 15, 92, 65, 35, 89]
SIX = tiny_config(hidden_size=32, intermediate_size=48, num_hidden_layers=6)


def all_kinds() -> Share:
    """Decide for it: every exit and length in turn, with and without a stop, plain steps too."""
    kinds = itertools.cycle(itertools.product((1, 3, 4), (0, 1, 5), (0.0, 0.4)))
    looks = itertools.cycle((False, False, True))
    watches = itertools.cycle((True, True, False))
    return lambda _: (*next(kinds), 1.0, next(looks), next(watches))


def run(model: Llama, settings: Settings, prompt: Sequence[int] = PROMPT) -> Generation:
    controller = Controller(6, most=5, share=all_kinds())
    return Generation(tuple(adaptive(model, prompt, controller=controller, settings=settings)))


def plain(model: Llama, settings: Settings, prompt: Sequence[int] = PROMPT) -> list[int]:
    rounds = autoregressive(model, prompt, plan=full(6), settings=settings)
    return Generation(tuple(rounds)).token_ids


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_those_of_plain_decoding(quiet_llama: Quiet, seed: int) -> None:
    model = quiet_llama(0.3, config=SIX, seed=seed)
    expected = plain(model, Settings(max_new_tokens=40))
    found = run(model, Settings(max_new_tokens=40))
    assert found.token_ids == expected
    assert sum(found.accept_counts) > 0
    assert sum(found.accept_counts) < sum(found.draft_counts)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_generations_end_in_time(quiet_llama: Quiet, length: int) -> None:
    model = quiet_llama(0.3, config=SIX, seed=1)
    settings = Settings(max_new_tokens=length)
    assert run(model, settings, PROMPT[:1]).token_ids == plain(model, settings, PROMPT[:1])


def test_processors_see_the_right_prefix_in_looks_too(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.3, config=SIX, seed=2)
    settings = Settings(
        max_new_tokens=30,
        processors=[RepetitionPenaltyLogitsProcessor(1.4), NoRepeatNGramLogitsProcessor(2)],
    )
    assert run(model, settings).token_ids == plain(model, settings)


def test_a_sequence_ends_where_plain_decoding_ends_it(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.3, config=SIX, seed=3)
    eos = plain(model, Settings(max_new_tokens=30))[17]
    settings = Settings(max_new_tokens=30, eos_ids=frozenset([eos]), min_new_tokens=5)
    assert run(model, settings).token_ids == plain(model, settings)


def test_its_own_decisions_change_no_token_either(quiet_llama: Quiet) -> None:
    model, controller = quiet_llama(0.3, config=SIX, seed=4), Controller(6, most=8)
    for prompt in (PROMPT, PROMPT[::-1], PROMPT[2:5]):
        settings = Settings(max_new_tokens=60)
        rounds = adaptive(model, prompt, controller=controller, settings=settings)
        assert Generation(tuple(rounds)).token_ids == plain(model, settings, prompt)
    assert controller.rates != dict.fromkeys(controller.exits, 0.0)


def seen_by(model: Llama, ids: torch.Tensor) -> Seen:
    exits = (1, 3, 6)
    states = model(
        ids, make_tokens(model.config, torch.arange(ids.shape[1])[None]), full(6, exits=exits)
    )
    return Seen({e: states[e] for e in exits}, ids.shape[1])


@torch.no_grad()
def test_a_look_finds_where_exits_agree_and_how_sure_they_are(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(0.3, config=SIX, seed=5), Settings(max_new_tokens=4)
    ids = torch.tensor([PROMPT])
    seen, work = seen_by(model, ids), prepare(model, PROMPT, settings, [full(6)])
    matches, sure = shadow(model, work, [seen], [1, 3], settings.sampling)
    logits = {e: model.unembed(h[0]) for e, h in seen.states.items()}  # (S, V)
    for row, e in enumerate((1, 3)):
        agree = logits[e].argmax(-1) == logits[6].argmax(-1)
        assert matches[row].tolist() == agree.double().tolist()
        assert sure[row] == pytest.approx(logits[e].softmax(-1).amax(-1).numpy())


@torch.no_grad()
def test_when_sampling_agreement_is_the_overlap_of_distributions(quiet_llama: Quiet) -> None:
    model, sampling = quiet_llama(0.3, config=SIX, seed=5), SamplingConfig(temperature=0.7)
    settings = Settings(max_new_tokens=4, sampling=sampling)
    seen = seen_by(model, torch.tensor([PROMPT]))
    work = prepare(model, PROMPT, settings, [full(6)])
    matches, _ = shadow(model, work, [seen], [3], sampling)
    q, p = ((model.unembed(seen.states[e][0]) / 0.7).softmax(-1) for e in (3, 6))
    assert matches[0] == pytest.approx(torch.minimum(p, q).sum(-1).numpy())


def test_laps_divide_a_stretch_by_its_visits() -> None:
    laps = Laps(torch.device("cpu"))
    laps.lap("layer", 1, 4)
    laps.lap("accept", 2)
    (layer, each), (accept, all_) = laps.read()
    assert (layer, accept) == (("layer", 1), ("accept", 2))
    assert each >= 0
    assert all_ >= 0
    assert laps.read() == []
