"""Our decoding with transformers' logits processors against transformers' own `generate`."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.self_speculative import self_speculative
from models.plan import full
from tests.parity.reference import pair
from tests.tiny import tiny_config

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("_exact_norms")]

PROMPT = [3, 14, 15, 92, 65, 3, 14]
COUNT = 20


def _theirs(model, eos, **options):
    ids = torch.tensor([PROMPT])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=COUNT,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
        **options,
    )
    return out[0, len(PROMPT) :].tolist()


def _ours(model, settings):
    rounds = autoregressive(model, PROMPT, plan=full(4), settings=settings)
    return Generation(tuple(rounds)).token_ids


def _bad_words(free):
    return NoBadWordsLogitsProcessor([[free[4]], free[1:3], [PROMPT[-1], free[0]]])


PROCESSORS = {
    "none": lambda _: [],
    "repetition": lambda _: [RepetitionPenaltyLogitsProcessor(5.0)],
    "no pair twice": lambda _: [NoRepeatNGramLogitsProcessor(2)],
    "bad words": lambda free: [_bad_words(free)],
    "all": lambda free: [
        _bad_words(free),
        RepetitionPenaltyLogitsProcessor(1.2),
        NoRepeatNGramLogitsProcessor(1),
    ],
}


@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS.keys())
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_tokens_under_processors_are_those_of_transformers(make, tied):
    ours, theirs = pair(tiny_config(tie_word_embeddings=tied), dtype=torch.float64)
    free = _theirs(theirs, None)
    processors = LogitsProcessorList(make(free))
    expected = _theirs(theirs, None, logits_processor=processors)
    assert (expected == free) == (not processors)
    settings = Settings(max_new_tokens=COUNT, processors=processors)
    assert _ours(ours, settings) == expected
    rounds = self_speculative(ours, PROMPT, draft=full(2), num_speculations=4, settings=settings)
    assert Generation(tuple(rounds)).token_ids == expected


@pytest.mark.parametrize("least", [0, 1, 3, 12, COUNT])
def test_the_least_length_is_that_of_transformers(least):
    ours, theirs = pair(tiny_config(), dtype=torch.float64)
    free = _theirs(theirs, None)
    ends = sorted({free[0], free[3]})
    expected = _theirs(theirs, ends, min_new_tokens=least)
    settings = Settings(max_new_tokens=COUNT, min_new_tokens=least, eos_ids=frozenset(ends))
    assert _ours(ours, settings) == expected
    assert len(expected) >= least
