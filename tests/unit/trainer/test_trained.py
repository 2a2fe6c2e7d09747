"""What of a model is trained."""

from typing import Any

import pytest

from models.llama import Llama
from models.lora import LoraConfig, is_adapter
from tests.tiny import tiny_config
from trainer.trained import FreezeConfig, unfilled_model

LAYERS = [f"model.layers.{layer}." for layer in range(4)]


def trained(freeze: FreezeConfig, **changes: Any) -> set[str]:
    model: Llama = unfilled_model(tiny_config(**changes), None, freeze)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_layers_above_an_exit_and_the_head_stay() -> None:
    names = trained(FreezeConfig(layers_from=2))
    assert "model.embed_tokens.weight" in names
    assert not names & {"model.norm.weight", "lm_head.weight"}
    assert {name[: len(LAYERS[0])] for name in names if ".layers." in name} == set(LAYERS[:2])


def test_a_tied_head_stays_with_its_embedding() -> None:
    names = trained(FreezeConfig(layers_from=2), tie_word_embeddings=True)
    assert all(name.startswith(tuple(LAYERS[:2])) for name in names)


def test_patterns_say_what_stays_or_what_does_not() -> None:
    assert trained(FreezeConfig(all_but=("model.norm.*", "lm_head.*"))) == {
        "model.norm.weight",
        "lm_head.weight",
    }
    everything = trained(FreezeConfig(match=("lm_head.*",))) | {"lm_head.weight"}
    assert everything == {
        n for n, _ in unfilled_model(tiny_config(), None, None).named_parameters()
    }


def test_adapters_alone_are_trained_beside_frozen_weights() -> None:
    model = unfilled_model(tiny_config(), LoraConfig(), None)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_adapter(name), name


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ({"match": ("model.layers.9.*",)}, r"freeze\.match: 'model\.layers\.9\.\*' matches no"),
        ({"all_but": ("head",)}, r"freeze\.all_but: 'head' matches no parameter"),
        ({"match": ("*",)}, "leaves nothing to train"),
        ({"layers_from": 4}, r"freeze\.layers_from 4 names no layer: the model has 4"),
        ({"layers_from": 0}, r"freeze\.layers_from must be at least 1"),
        ({}, "got none"),
        ({"match": ("*",), "layers_from": 2}, "got match and layers_from"),
    ],
)
def test_what_cannot_be_frozen_is_named(freeze: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(FreezeConfig(**freeze))
