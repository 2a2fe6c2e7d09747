"""Which parameters a run trains: all, the adapters, or those that `freeze` leaves.

What is frozen has no gradient, no optimizer state and no place in a checkpoint: it is that of
`init_from`, whatever the step.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from models.config import LlamaConfig
from models.llama import Llama
from models.lora import LoraConfig, add_adapters
from parallel.base import Base, check_base, describe_base

LAYER = re.compile(r"model\.layers\.(\d+)\.")
ROOT = {"model.norm.weight", "lm_head.weight"}
"""What stands above the layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeConfig:
    """Leave a part of the model as it is; say which in one of three ways."""

    match: tuple[str, ...] = ()
    """Names of the parameters that stay, as patterns: ["model.embed_tokens.*", "*.mlp.*"]."""
    all_but: tuple[str, ...] = ()
    """Patterns of what is trained, all else stays: ["model.norm.*", "lm_head.*"] trains what all
    exits share and leaves the trunk alone."""
    layers_from: int | None = None
    """Layers from this one on stay, and norm and head: those below learn to be read at exits up to
    this one by the head as it is."""

    def __post_init__(self) -> None:
        given = [name for name in ("match", "all_but") if getattr(self, name)]
        given += ["layers_from"] if self.layers_from is not None else []
        if len(given) != 1:
            raise ValueError(
                "freeze takes one of match, all_but and layers_from, got "
                f"{' and '.join(given) or 'none'}: leave the others out, or all of freeze"
            )
        if self.layers_from is not None and self.layers_from < 1:
            raise ValueError(
                f"freeze.layers_from must be at least 1, got {self.layers_from}: nothing would be "
                "left to train but the embedding"
            )


def choose_trained(model: Llama, lora: LoraConfig | None, freeze: FreezeConfig | None) -> None:
    """Add the adapters and freeze what is not to be trained, in place, on any device.

    Raises:
        ValueError: if a pattern matches nothing, or nothing is left to train.
    """
    if lora is not None:
        add_adapters(model, lora)
    if freeze is None:
        return
    if freeze.layers_from is not None and freeze.layers_from >= model.config.num_hidden_layers:
        raise ValueError(
            f"freeze.layers_from {freeze.layers_from} names no layer: the model has "
            f"{model.config.num_hidden_layers}"
        )
    names = [name for name, _ in model.named_parameters()]
    check_patterns("freeze.match", freeze.match, names)
    check_patterns("freeze.all_but", freeze.all_but, names)
    # A head that is the embedding's matrix is frozen with it.
    root = ROOT | ({"model.embed_tokens.weight"} if model.lm_head is None else set())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _stays(name, freeze, root))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("freeze leaves nothing to train: name less of the model")


def unfilled_model(
    config: LlamaConfig, lora: LoraConfig | None, freeze: FreezeConfig | None
) -> Llama:
    """Return the model on the meta device, with adapters, knowing what of it is trained.

    Raises:
        ValueError: as `choose_trained`.
    """
    with torch.device("meta"):
        model = Llama(config)
    choose_trained(model, lora, freeze)
    return model


def find_base(
    init_from: str | None,
    lora: LoraConfig | None,
    freeze: FreezeConfig | None,
    newest: Path | None,
) -> Base | None:
    """Return what a checkpoint is to say of the weights that stay as they are; None: none do.

    Args:
        init_from: where they are from.
        lora: adapters beside them.
        freeze: what stays.
        newest: the checkpoint to go on from, which has to have the same.

    Raises:
        RuntimeError: if it has not.
    """
    if lora is None and freeze is None:
        return None
    base = describe_base(str(init_from), lora)
    if newest is not None:
        check_base(newest, base)
    return base


def _stays(name: str, freeze: FreezeConfig, root: set[str]) -> bool:
    if freeze.layers_from is not None:
        found = LAYER.match(name)
        return name in root if found is None else int(found[1]) >= freeze.layers_from
    if freeze.all_but:
        return not matches(name, freeze.all_but)
    return matches(name, freeze.match)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of the patterns (`*`, `?`, `[...]`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(key: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Check that each pattern fits some name.

    Raises:
        ValueError: with the first that does not.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{key}: {pattern!r} matches no parameter that is there; they have names such as "
                f"{names[0]} and {names[-1]}"
            )
