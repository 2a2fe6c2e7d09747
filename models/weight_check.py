"""Whether named tensors fit a model: every one there, none too many, each of the right shape."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from models.config import LlamaConfig
from models.llama import Llama

Shapes = Mapping[str, tuple[int, ...]]


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a Llama by name; allocates nothing."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Llama(config).named_parameters()}


def check_shapes(found: Shapes, wanted: Shapes, *, origin: str) -> None:
    """Compare what a checkpoint holds with what a model has.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; one line with its name
            and both shapes.
    """
    _refuse(sorted(wanted.keys() - found.keys()), f"missing from {origin}")
    _refuse(sorted(found.keys() - wanted.keys()), f"in {origin} but not in the model")
    for name, shape in found.items():
        if shape != wanted[name]:
            raise ValueError(
                f"{name} has shape {shape} in {origin} but {wanted[name]} in the model: give the "
                "model the checkpoint's own config.json"
            )


def _refuse(names: list[str], fault: str) -> None:
    if not names:
        return
    keys = "num_hidden_layers, attention_bias and mlp_bias"
    if "lm_head.weight" in names:
        keys = "tie_word_embeddings"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    raise ValueError(
        f"{names[0]}{more} is {fault}: compare {keys} of the model with the checkpoint's "
        "config.json"
    )


def checked(
    weights: Iterable[tuple[str, Tensor]], config: LlamaConfig, *, origin: str
) -> Iterator[tuple[str, Tensor]]:
    """Pass weights through and end only if they were exactly the parameters of the config.

    Raises:
        ValueError: as `check_shapes`, at the first tensor that does not fit or after the last.
    """
    wanted = parameter_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in weights:
        if name in found:
            raise ValueError(f"{name} comes twice in {origin}")
        shape = found[name] = tuple(tensor.shape)
        check_shapes({name: shape}, {name: wanted[name]} if name in wanted else {}, origin=origin)
        yield name, tensor
    check_shapes(found, wanted, origin=origin)
