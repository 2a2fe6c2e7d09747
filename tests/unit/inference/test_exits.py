import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.__main__ import main
from inference.exits.choices import agreements, earliest_exits, exit_choices
from inference.exits.command import exits, exits_table, token_texts
from inference.exits.config import ExitsConfig
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.load import Loaded, load
from inference.pictures.exits import cells
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config

Quiet = Callable[..., Llama]


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


@torch.no_grad()
def test_choices_are_those_of_each_exit_as_a_model(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.5, config=tiny_config(max_position_embeddings=400))
    ids = torch.randint(96, (1, 300))  # more positions than are unembedded at once
    found = exit_choices(model, ids[0].tolist())
    tokens = make_tokens(model.config, torch.arange(300)[None])
    for e in (1, 2, 3, 4):
        expected = model.unembed(model(ids, tokens, full(e))[e])[0].argmax(-1)
        assert torch.equal(found[e - 1], expected)


def test_the_earliest_exit_is_the_first_that_says_the_token(quiet_llama: Quiet) -> None:
    model, prompt = quiet_llama(0.5), [3, 4, 5]
    settings = Settings(max_new_tokens=40)
    plain = autoregressive(model, prompt, plan=full(4), settings=settings)
    tokens = Generation(tuple(plain)).token_ids
    same = agreements(model, prompt, tokens)
    assert same.shape == (4, 40)
    assert bool(same[-1].all())  # greedy: the last exit said all of them
    found = earliest_exits(model, prompt, tokens)
    assert len(set(found)) > 1
    for index, e in enumerate(found):
        assert bool(same[e - 1, index])
        assert not bool(same[: e - 1, index].any())


def test_layers_that_do_nothing_are_never_needed(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.0, above=2)
    plain = autoregressive(model, [7], plan=full(4), settings=Settings(max_new_tokens=20))
    assert max(earliest_exits(model, [7], Generation(tuple(plain)).token_ids)) <= 2


def test_a_token_that_nobody_predicts_is_the_last_exits(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.5)
    never = next(token for token in range(96) if not bool(agreements(model, [3, 4], [token]).any()))
    assert earliest_exits(model, [3, 4], [never]) == [4]


def test_pieces_together_are_the_text(loaded: Loaded) -> None:
    text = "def é 日本\n"
    ids = loaded.tokenizer.encode(text)
    pieces = token_texts(loaded, loaded.encode("class"), ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_json_and_table_agree(loaded: Loaded, tmp_path: Path) -> None:
    keys = {"prompt": "def f", "max_new_tokens": 12, "stop_at_eos": False}
    out = io.StringIO()
    exits(ExitsConfig(**keys, output="json", picture=str(tmp_path / "a.png")), loaded, out)
    values = json.loads(out.getvalue())
    assert len(values["exits"]) == len(values["tokens"]) == len(values["token_ids"]) == 12
    assert set(values["exits"]) <= {1, 2, 3, 4}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    table = io.StringIO()
    exits(ExitsConfig(**keys), loaded, table)
    assert table.getvalue().splitlines() == exits_table(values["exits"], 4)


def test_the_table_counts_and_adds_up() -> None:
    lines = exits_table([1, 1, 3, 4], 4)
    assert [line.split() for line in lines[1:-1]] == [
        ["1", "2", "0.500", "0.500"],
        ["2", "0", "0.000", "0.500"],
        ["3", "1", "0.250", "0.750"],
        ["4", "1", "0.250", "1.000"],
    ]
    assert lines[-1] == "4 tokens, on average predicted by exit 2.2 of 4"


def test_a_picture_has_every_token_where_it_stands_in_the_text() -> None:
    placed = cells("ab", ["cd\n", "e", "", "fghij"], columns=5)
    assert [(cell.line, cell.column, cell.text, cell.token) for cell in placed] == [
        (0, 0, "ab", None),
        (0, 2, "cd⏎", 0),
        (1, 0, "e", 1),
        (1, 1, "·", 2),
        (1, 2, "fgh", 3),
        (2, 0, "ij", 3),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["prompt=a", "picture=a.jpg"], r"picture=a\.jpg must be a \.png file"),
        (["prompt=a", "max_new_tokens=0"], "max_new_tokens must be at least 1"),
        ([], "required key prompt is missing"),
        (["prompt=a", "temperature=1"], "unknown key temperature"),
    ],
)
def test_what_cannot_be_shown_is_refused(keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["exits", "no/such/model", *keys])
