import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from inference.load import Loaded, load
from inference.perplexity import PerplexityConfig, perplexity, read_texts, score
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config

Quiet = Callable[..., Llama]
TEXT = "def f(x):\n    return x if x else None\n" * 12


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


def _run(loaded: Loaded, file: Path, **changes: Any) -> str:
    out = io.StringIO()
    perplexity(PerplexityConfig(texts=str(file), **changes), loaded, out)
    return out.getvalue()


@torch.no_grad()
def test_every_exit_is_scored_as_if_it_were_the_model(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.5, config=tiny_config(max_position_embeddings=600))
    ids = torch.randint(96, (1, 520))  # more positions than are unembedded at once
    scores = score(model, [ids[0].tolist()])
    tokens = make_tokens(model.config, torch.arange(520)[None])
    logits = [model.unembed(model(ids, tokens, full(e))[e])[0, :-1] for e in (1, 2, 3, 4)]
    for each, expected in zip(scores, logits, strict=True):
        assert each.loss == pytest.approx(float(cross_entropy(expected, ids[0, 1:])), rel=1e-6)
        same = expected.argmax(-1) == logits[-1].argmax(-1)
        assert each.agreement == pytest.approx(float(same.double().mean()))
        assert each.tokens == 519
    assert scores[0].agreement < scores[-1].agreement == 1


def test_pieces_are_pooled_by_token_and_do_not_see_each_other(quiet_llama: Quiet) -> None:
    model, long, short = quiet_llama(0.5), list(range(40)), [5, 7, 9]
    apart = [score(model, [piece]) for piece in (long, short)]
    for both, a, b in zip(score(model, [long, short]), *apart, strict=True):
        assert both.loss == pytest.approx((39 * a.loss + 2 * b.loss) / 41)
        assert both.tokens == 41


def test_layers_that_do_nothing_leave_all_exits_equal(quiet_llama: Quiet) -> None:
    scores = score(quiet_llama(0.0, above=2), [list(range(30))])
    assert scores[1].loss == scores[2].loss == scores[3].loss != scores[0].loss
    assert [each.agreement for each in scores[1:]] == [1.0, 1.0, 1.0]


def test_a_hopeless_loss_has_no_finite_perplexity(quiet_llama: Quiet) -> None:
    model = quiet_llama(1.0)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e6)
    assert math.isinf(score(model, [list(range(30))])[-1].perplexity)


def test_a_long_text_is_cut_into_windows(loaded: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    count = len(loaded.encode(TEXT))
    for window in (200, 50):
        lines = [
            json.loads(x) for x in _run(loaded, file, window=window, output="json").splitlines()
        ]
        assert [line["exit"] for line in lines] == [1, 2, 3, 4]
        assert {line["tokens"] for line in lines} == {count - math.ceil(count / window)}
        for line in lines:
            assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))


def test_no_more_tokens_are_scored_than_asked_for(loaded: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(3)))
    head, *rows = _run(loaded, file, max_tokens=70, window=40).splitlines()
    assert head.split() == ["exit", "loss", "perplexity", "agreement", "tokens"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    assert {row.split()[-1] for row in rows} == {"70"}


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("", {}, "the file is empty"),
        ("x y", {"window": 257}, "window=257, but the model's context is 256"),
        ("x y", {"window": 1}, "window must be at least 2 tokens, got 1"),
        ("x y", {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    loaded: Loaded, tmp_path: Path, content: str, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        _run(loaded, file, **changes)


def test_a_bad_file_of_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts=nowhere\.txt: there is no such file"):
        read_texts("nowhere.txt")
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is not an object such as"):
        read_texts(str(file))
