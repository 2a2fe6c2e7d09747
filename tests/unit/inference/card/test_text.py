from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData

from inference.card.text import card_text, drafting, metadata
from tests.card_facts import CONFIG, facts, run_facts, tuned, validation


def test_the_hub_reads_the_front_matter() -> None:
    found = facts(base_model="owner/name", license="apache-2.0")
    card = ModelCard(card_text(found))
    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == metadata(found)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model == "owner/name"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["owner/web"]
    assert card.data.tags == ["llama", "layerskip", "early-exit", "self-speculative"]
    assert card.text.lstrip().startswith("# mine_hf\n")


def test_what_is_not_known_is_left_out() -> None:
    found = facts(run=None, source="somewhere")
    data = metadata(found)
    assert set(data) == {"library_name", "pipeline_tag", "tags"}
    assert data["tags"] == ["llama"]
    text = card_text(found)
    assert "Made from `somewhere`; how that was trained is not known here." in text
    assert "Nothing is known here of its exits" in text
    for absent in ("None", "## Recipe", "## Data", "## Exits", "assistant_early_exit"):
        assert absent not in text


def test_a_run_without_validation_and_metrics_says_the_rest() -> None:
    found = run_facts(validation=None, seconds=None, commit=None, versions={}, tokens=None)
    text = card_text(facts(run=found))
    assert "## Recipe" in text
    assert "| steps | 30, each 16 sequences of 64 positions |" in text
    for absent in ("None", "## Exits", "| code |", "| time |", "| packages |", "It has seen"):
        assert absent not in text


def test_every_exit_has_its_figures() -> None:
    text = card_text(facts())
    assert "Validated after step 30 on 2,048 tokens" in text
    assert "| 1 | 2.900 | 19 | 50.0% |" in text
    assert "| 4 | 2.600 | 16 | 100.0% |" in text


def test_an_older_validation_says_that_it_is_one() -> None:
    text = card_text(facts(run=run_facts(step=40)))
    assert "Validated after step 30" in text
    assert "The weights here are those after step 40." in text


def test_a_model_that_was_trained_for_seconds_is_said_to_be() -> None:
    assert "It has seen 30,720 tokens in 6.4 seconds" in card_text(facts())
    assert "not good text" not in card_text(facts(run=run_facts(tokens=10**9)))
    going_on = run_facts(config={**CONFIG, "init_from": "owner/name"})
    assert "trained for 30,720 tokens in 6.4 seconds from where" in card_text(facts(run=going_on))
    assert "after 20 steps." in card_text(facts(run=run_facts(step=20)))


def test_exits_that_were_not_trained_are_not_praised() -> None:
    found = facts(run=run_facts(config={**CONFIG, "exit_loss": None, "layer_dropout": None}))
    assert metadata(found)["tags"] == ["llama"]
    assert "Its exits were not trained" in card_text(found)
    assert drafting(found) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (tuned(), (2, 4)),
        (tuned(settings=("strategy=autoregressive",)), None),
        (tuned(exit_layer=None, num_speculations=None), (1, 6)),  # of strategy=adaptive
        (None, (1, 6)),
    ],
)
def test_the_exit_to_draft_with_is_the_tuned_or_the_promising_one(
    settings: object, expected: object
) -> None:
    found = facts(run=run_facts(validation=validation(0.9, 0.9, 0.9)), tuned=settings)
    assert drafting(found) == expected


def test_adapters_are_a_model_of_peft() -> None:
    found = run_facts(config={**CONFIG, "init_from": "/home/me/base"})
    text = card_text(replace(facts(run=found), is_adapter=True))
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert "lora" in (card.data.tags or [])
    assert 'PeftModel.from_pretrained(base, "runs/mine_hf")' in text
    assert 'from_pretrained("base")' in text
    assert "/home/me" not in text
