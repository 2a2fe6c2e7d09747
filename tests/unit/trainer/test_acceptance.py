import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from inference.generate import autoregressive
from inference.generation import Settings
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama
from trainer.acceptance import MOST_DRAFTS, Bools, count_rounds, speculation


def count_by_hand(matches: list[bool], known: list[bool], most: int) -> tuple[int, int, int]:
    """The slow twin: one exit, one row, one length, token by token."""
    rounds = drafted = accepted = at = 0
    while at < len(known):
        if not known[at]:
            at += 1
            continue
        end = at
        while end < len(known) and known[end]:
            end += 1
        drafts = min(most, end - at - 1)
        right = 0
        while right < drafts and matches[at + right]:
            right += 1
        rounds, drafted, accepted = rounds + 1, drafted + drafts, accepted + right
        at += right + 1
    return rounds, drafted, accepted


def draws(share: float, *shape: int, seed: int = 0) -> Bools:
    found: Bools = np.random.default_rng(seed).random(shape) < share
    return found


@pytest.mark.parametrize("share_known", [1.0, 0.9, 0.3, 0.0])
def test_counts_are_those_of_a_walk_token_by_token(share_known: float) -> None:
    matches = np.concatenate([draws(share, 1, 5, 40) for share in (0.0, 0.4, 0.9, 1.0)])
    known = draws(share_known, 5, 40, seed=1)
    counts = count_rounds(matches, known)
    for x, most in np.ndindex(4, MOST_DRAFTS):
        rows = [count_by_hand(list(matches[x, b]), list(known[b]), most + 1) for b in range(5)]
        assert counts[x, most].tolist() == np.sum(rows, axis=0).tolist()


def test_a_draft_ends_where_a_document_does() -> None:
    matches, known = np.ones((1, 1, 8), dtype=bool), np.ones((1, 8), dtype=bool)
    whole = count_rounds(matches, known)[0, 5]
    known[0, 3] = False
    divided = count_rounds(matches, known)[0, 5]
    assert whole.tolist() == [2, 6, 6]  # 6 drafts and a token, then the last one
    assert divided.tolist() == [2, 2 + 3, 2 + 3]


def test_rows_and_batches_add_up() -> None:
    matches, known = draws(0.6, 3, 4, 25), draws(0.95, 4, 25, seed=1)
    parts = [count_rounds(matches[:, b : b + 1], known[b : b + 1]) for b in range(4)]
    assert np.array_equal(count_rounds(matches, known), sum(parts))


def choices(model: Llama, ids: list[int]) -> Bools:
    """Return (X, S) where each exit chooses, after each token, what the last layer does."""
    depth = model.config.num_hidden_layers
    tokens = make_tokens(model.config, torch.arange(len(ids))[None])
    hiddens = model(torch.tensor([ids]), tokens, full(depth, exits=range(1, depth + 1)))
    best = torch.stack([model.unembed(hiddens[e][0]).argmax(-1) for e in range(1, depth + 1)])
    return (best[:-1] == best[-1:]).numpy()


@pytest.mark.parametrize("quiet", [0.05, 0.3])
def test_on_its_own_text_the_counts_are_those_of_real_self_speculation(
    quiet: float, quieted: Callable[[float], Llama]
) -> None:
    model, settings, prompt = quieted(quiet), Settings(max_new_tokens=60), [3, 14, 15]
    rounds = autoregressive(model, prompt, plan=full(4), settings=settings)
    new = [token for each in rounds for token in each.tokens]
    with torch.inference_mode():
        matches = choices(model, [*prompt, *new])[:, None, len(prompt) - 1 : -1]  # (X, 1, S)
    counts = count_rounds(matches, np.ones((1, len(new)), dtype=bool))
    for exit_layer, most in [(1, 1), (1, 4), (2, 6), (3, 12)]:
        real = list(
            self_speculative(
                model,
                prompt,
                draft=full(exit_layer),
                num_speculations=most,
                settings=settings,
            )
        )
        found = [len(real), sum(r.drafted for r in real), sum(r.accepted for r in real)]
        assert counts[exit_layer - 1, most - 1].tolist() == found
    assert 0 < counts[0, 3, 2] < counts[0, 3, 1]  # some drafts were right, some were not


@pytest.fixture
def quieted() -> Callable[[float], Llama]:
    def make(quiet: float) -> Llama:
        model = tiny_llama()
        with torch.no_grad():
            for layer in (1, 2, 3):
                model.layers[str(layer)].self_attn.o_proj.weight.mul_(quiet)
                model.layers[str(layer)].mlp.down_proj.weight.mul_(quiet)
        return model

    return make


def test_the_best_length_is_long_where_drafts_are_right_and_short_where_they_are_not() -> None:
    config, known = tiny_config(vocab_size=32), np.ones((4, 200), dtype=bool)
    matches = np.stack([draws(share, 4, 200) for share in (0.1, 0.6, 0.98)])
    found = speculation(config, dict(enumerate(count_rounds(matches, known), start=1)))
    lengths = [found[e].draft_length for e in (1, 2, 3)]
    assert lengths[0] == 1
    assert lengths[0] <= lengths[1] < lengths[2]
    assert [found[e].acceptance[0] for e in (1, 2, 3)] == pytest.approx([0.1, 0.6, 0.98], abs=0.05)
    assert found[2].acceptance[5] < found[2].acceptance[0]


def test_a_model_of_one_layer_has_no_exit_to_draft_at() -> None:
    assert count_rounds(draws(0.5, 0, 2, 9), draws(1.0, 2, 9)).shape == (0, MOST_DRAFTS, 3)


def test_an_exit_without_any_label_says_nothing() -> None:
    counts = count_rounds(draws(0.5, 1, 2, 9), np.zeros((2, 9), dtype=bool))
    assert speculation(tiny_config(), {1: counts[0]}) == {}


def babble(count: int, length: int, *, seed: int) -> torch.Tensor:
    """Return ids (B, S) in which most tokens follow from the two before them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 16, (count, length), generator=generator)
    follows = torch.rand(count, length, generator=generator) < 0.9
    for at in range(2, length):
        ruled = (3 * ids[:, at - 1] + 5 * (ids[:, at - 2] > 7)) % 16
        ids[:, at] = torch.where(follows[:, at], ruled, ids[:, at])
    return ids


@pytest.fixture(scope="module")
def trained() -> Llama:
    """A model that has learnt to babble at every exit."""
    torch.manual_seed(0)
    model = tiny_llama(tiny_config(vocab_size=16), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = make_tokens(model.config, torch.arange(31)[None])
    for step in range(15):
        ids = babble(16, 32, seed=step)
        states = model(ids[:, :-1], tokens, full(4, exits=(1, 2, 4)))
        losses = [cross_entropy(model.unembed(h).mT, ids[:, 1:]) for h in states.values()]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().double()


@pytest.mark.parametrize("exit_layer", [1, 2])
def test_on_a_text_the_estimate_is_near_what_decoding_from_it_measures(
    trained: Llama, exit_layer: int
) -> None:
    text, most = babble(24, 64, seed=1000), 4
    with torch.inference_mode():
        matches = np.stack([choices(trained, row.tolist()) for row in text], axis=1)  # (X, B, S)
    counts = count_rounds(matches, np.ones(text.shape, dtype=bool))[exit_layer - 1, most - 1]
    estimate = counts[2] / counts[1]
    settings, rounds = Settings(max_new_tokens=most + 1), []
    for row, cut in itertools.product(text.tolist(), range(8, 64, 8)):
        decoded = self_speculative(
            trained,
            row[:cut],
            draft=full(exit_layer),
            num_speculations=most,
            settings=settings,
        )
        rounds.append(next(decoded))  # the first one has read nothing but the text
    measured = sum(r.accepted for r in rounds) / sum(r.drafted for r in rounds)
    assert 0.1 < measured < 0.99
    assert estimate == pytest.approx(measured, abs=0.1)
