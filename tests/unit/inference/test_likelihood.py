from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from inference.batch import BatchSettings
from inference.evaluate.likelihood import Question, log_likelihoods
from inference.evaluate.questions import as_question, rolling_questions
from inference.evaluate.texts import generate_texts, wanted
from inference.load import Loaded, load
from inference.sample import SamplingConfig
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config

Quiet = Callable[..., Llama]


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


@torch.no_grad()
def _plainly(model: Llama, question: Question, exit_layer: int) -> tuple[float, bool]:
    """Score one question alone: all logits of the exit, cross entropy of those that are asked."""
    ids = torch.tensor([[*question.before, *question.after]])
    tokens = make_tokens(model.config, torch.arange(ids.shape[1])[None])
    logits = model.unembed(model(ids, tokens, full(exit_layer))[exit_layer])[0]
    first, targets = len(question.before), ids[0, len(question.before) :]
    asked = logits[first - 1 : -1]
    loss = float(cross_entropy(asked, targets, reduction="sum"))
    return -loss, bool((asked.argmax(-1) == targets).all())


@pytest.mark.parametrize("exit_layer", [1, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_padded_batches_score_as_each_text_alone(
    quiet_llama: Quiet, exit_layer: int, batch_size: int
) -> None:
    model = quiet_llama(0.5, config=tiny_config(max_position_embeddings=600))
    draw = torch.Generator().manual_seed(0)
    questions = [
        Question(
            tuple(torch.randint(96, (before,), generator=draw).tolist()),
            tuple(torch.randint(96, (after,), generator=draw).tolist()),
        )
        for before, after in ((1, 1), (9, 4), (30, 1), (2, 300), (5, 2))  # more than one chunk
    ]
    questions.append(Question(questions[1].before, (questions[1].after[0],)))
    found = log_likelihoods(
        model, questions, exit_layer=exit_layer, batch_size=batch_size, max_length=600
    )
    for each, question in zip(found, questions, strict=True):
        logprob, is_greedy = _plainly(model, question, exit_layer)
        assert each.logprob == pytest.approx(logprob, rel=1e-9)
        assert each.is_greedy == is_greedy


@torch.no_grad()
def test_the_exits_own_continuation_is_greedy_and_another_exits_is_not(quiet_llama: Quiet) -> None:
    model, before = quiet_llama(1.0), (3, 4, 5)
    tokens = make_tokens(model.config, torch.arange(3)[None])
    hiddens = model(torch.tensor([before]), tokens, full(4, exits=(1, 4)))
    best = [int(model.unembed(hiddens[e])[0, -1].argmax()) for e in (1, 4)]
    assert best[0] != best[1]
    questions = [Question(before, (token,)) for token in best]
    for exit_layer, expected in ((1, [True, False]), (4, [False, True])):
        found = log_likelihoods(model, questions, exit_layer=exit_layer, batch_size=8, max_length=9)
        assert [each.is_greedy for each in found] == expected


def test_a_long_text_loses_its_beginning(quiet_llama: Quiet) -> None:
    model, ids = quiet_llama(0.5), tuple(range(40))
    settings = {"exit_layer": 4, "batch_size": 2}
    cut = log_likelihoods(model, [Question(ids[:30], ids[30:])], max_length=20, **settings)
    short = log_likelihoods(model, [Question(ids[19:30], ids[30:])], max_length=99, **settings)
    assert cut[0].logprob == pytest.approx(short[0].logprob, rel=1e-12)
    with pytest.raises(ValueError, match="a continuation has 10 tokens, and the longest text is 9"):
        log_likelihoods(model, [Question(ids[:30], ids[30:])], max_length=9, **settings)


def test_every_token_of_a_long_text_is_asked_for_once() -> None:
    for length in (1, 7, 8, 9, 16, 21):
        ids = list(range(100, 100 + length))
        questions = rolling_questions(ids, 5, 8)
        assert [token for each in questions for token in each.after] == ids
        for each in questions:
            assert len(each.read(8)) == len(each.before) + len(each.after) - 1 <= 8
        assert questions[0].before == (5,)
        assert all(len(each.read(8)) == 8 for each in questions[1:])
    assert rolling_questions([], 5, 8) == []


def test_spaces_go_with_the_continuation(loaded: Loaded) -> None:
    apart, joined = as_question(loaded, "def f ", "(x)"), as_question(loaded, "def f", " (x)")
    assert apart == joined
    assert loaded.decode([*apart.before, *apart.after]) == "def f (x)"
    empty = as_question(loaded, "", "def")
    assert empty.before == (loaded.tokenizer.eos_id,)  # this tokenizer begins texts with nothing
    melted = as_question(loaded, "retur", "n")  # "return" is one token here
    assert loaded.decode(melted.before) == "retur"
    assert loaded.decode(melted.after) == "n"
    with pytest.raises(ValueError, match="the continuation of 'def' is empty"):
        as_question(loaded, "def", "")


def test_what_tasks_ask_for_is_read() -> None:
    assert wanted({"until": "\n", "max_gen_toks": 5, "temperature": 0.0}).until == ("\n",)
    assert wanted({"do_sample": False, "temperature": 0.7}).sampling == SamplingConfig()
    sampled = wanted({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3})
    assert sampled.sampling == SamplingConfig(temperature=0.7, top_p=0.9)
    assert sampled.max_new_tokens == 3
    assert wanted({}).max_new_tokens == 256
    with pytest.raises(ValueError, match="a task asks for num_beams=4 in generation_kwargs"):
        wanted({"num_beams": 4})


def test_texts_come_in_order_and_verified_ones_are_the_full_models(loaded: Loaded) -> None:
    requests = [
        ("def f", {"max_gen_toks": 9}),
        ("class A", {"max_gen_toks": 5, "until": ["x"]}),
        ("x " * 300, {"max_gen_toks": 9}),
    ]

    def texts(**batch: object) -> list[str]:
        settings = BatchSettings(rows=2, **batch)  # type: ignore[arg-type]
        return generate_texts(loaded, requests, batch=settings, max_length=64, seed=0)

    plain = texts()
    assert texts(exit_layer=2, num_speculations=3) == plain
    assert texts(exit_layer=2, is_verified=False) != plain
    assert "x" not in plain[1]
    with pytest.raises(ValueError, match="a task asks for 9 new tokens, but the longest text is 9"):
        generate_texts(loaded, requests, batch=BatchSettings(rows=2), max_length=9, seed=0)
