import pytest

from inference.card.recipe import (
    code,
    data_notes,
    duration,
    hub_datasets,
    recipe_rows,
    shown,
    source_rows,
)
from tests.card_facts import CONFIG, run_facts


def test_the_recipe_is_that_of_the_config() -> None:
    rows = dict(recipe_rows(run_facts()))
    assert rows["start"] == "fresh weights"
    assert rows["layer dropout"].startswith("p_max 0.2; ")
    assert rows["layer dropout"].endswith("growing over training from 0")
    assert rows["exit loss"] == "e_scale 0.2; rotational, every 3 layers, and the last"
    assert rows["optimiser"].startswith("AdamW, lr 0.003, betas 0.9, 0.95, weight decay 0.1")
    assert rows["schedule"] == "cosine, warm-up 5, down to 0.1 of the peak"
    assert rows["steps"] == "30, each 16 sequences of 64 positions; 30,720 tokens"
    assert rows["ranks"] == "2, DeepSpeed ZeRO-3, bfloat16"
    assert rows["seed"] == "7"
    assert rows["time"] == "6.4 seconds in steps"
    assert rows["code"] == "commit `48009173bc79`"
    assert "adapters" not in rows
    assert "frozen" not in rows


def test_other_recipes_are_told_apart() -> None:
    config = {
        **CONFIG,
        "init_from": "/home/me/models/base",
        "exit_loss": {"e_scale": 1.0, "curriculum": "gradual"},
        "layer_dropout": None,
        "lora": {"rank": 8, "targets": ["q_proj"]},
        "freeze": {"match": [], "layers_from": 2},
        "parallel": {"fsdp": {"shard_size": None}, "precision": "float32"},
    }
    rows = dict(recipe_rows(run_facts(config=config, step=20, is_changed=True)))
    assert rows["start"] == "the weights of `base`"
    assert rows["layer dropout"] == "none"
    assert rows["exit loss"] == "e_scale 1.0; exits from the last down, all from half way"
    assert rows["adapters"] == "LoRA, rank `8`, targets `['q_proj']`"
    assert rows["frozen"] == "layers_from `2`"
    assert rows["steps"].startswith("20 of 30, ")
    assert rows["ranks"] == "2, FSDP2, float32"
    assert rows["code"].endswith(", with changes")


def test_an_older_config_has_fewer_rows() -> None:
    rows = dict(recipe_rows(run_facts(config={"init_from": None}, commit=None, seconds=None)))
    assert set(rows) <= {"start", "layer dropout", "exit loss", "steps", "ranks", "packages"}
    assert source_rows(run_facts(config={})) == []
    assert list(data_notes(run_facts(config={}))) == []


def test_sources_have_their_shares() -> None:
    code_row, web_row = source_rows(run_facts())
    assert code_row[0].endswith("standard library, 0.5 MB of it")
    assert (code_row[2], web_row[2]) == ("75.0%", "25.0%")
    assert web_row[0] == "`owner/web`, config `sample`, split `train`"
    assert hub_datasets(run_facts()) == ["owner/web"]


def test_a_lone_source_of_files_is_shown_by_name_and_format() -> None:
    files = {"path": "/home/me/secret/calls", "pattern": "*.tsv", "format": "top_v2"}
    data = {"source": {"stdlib": None, "files": files, "hub": None}}
    assert source_rows(run_facts(config={"data": data})) == [
        ("files `calls`, `*.tsv`", "top_v2", "100.0%")
    ]


def test_what_else_there_is_of_the_data() -> None:
    notes = list(data_notes(run_facts()))
    assert notes[0] == "Tokenizer: SentencePiece, 1,024 pieces, trained on this text."
    assert (
        notes[1] == "Sequence length: 64; documents are packed into it and do not see each other."
    )
    tokenizer = {"tokenizer": {"sentencepiece": None, "path": "owner/name"}}
    assert list(data_notes(run_facts(config={"data": tokenizer}))) == [
        "Tokenizer: that of `owner/name`."
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(6.43, "6.4 seconds"), (119, "120 seconds"), (600, "10 minutes"), (9000, "2.5 hours")],
)
def test_times_have_two_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_names_cannot_break_a_table() -> None:
    assert code("a|b`c\nd") == "`a\\|b'c d`"
    assert shown("runs/x") == "runs/x"
