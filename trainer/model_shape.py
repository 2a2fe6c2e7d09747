"""The shape of the model that a run trains, from its config or from the model it goes on from."""

import dataclasses
import math

from models.config import LlamaConfig
from models.hf import read_config
from trainer.config import PretrainConfig


def model_config(config: PretrainConfig) -> LlamaConfig:
    """Return the shape of the model to train, read from `init_from` if the config has none.

    Raises:
        ValueError: if the other sections do not fit it.
    """
    shape = config.model or read_config(str(config.init_from))
    config.check_model(shape)
    return shape


def check_described(config: PretrainConfig) -> None:
    """Check that a model to go on from is as the config says, where it says something.

    Raises:
        ValueError: if it is not.
    """
    if config.model is None or config.init_from is None:
        return
    told, found = config.model, read_config(config.init_from)
    for field in dataclasses.fields(LlamaConfig):
        if field.name == "initializer_range":  # only fresh weights follow it
            continue
        resolved = {"num_key_value_heads": "kv_heads", "head_dim": "head_width"}
        name = resolved.get(field.name, field.name)
        ours, theirs = getattr(told, name), getattr(found, name)
        same = ours == theirs or (
            isinstance(ours, float) and math.isclose(ours, theirs, rel_tol=1e-6)
        )
        if not same:
            raise ValueError(
                f"model.{field.name} is {ours} but {theirs} in init_from {config.init_from}: "
                "correct it, or leave model out"
            )
