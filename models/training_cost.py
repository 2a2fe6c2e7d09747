"""What of a model is trained, by units, and the floating-point operations of training it so.

A frozen matrix costs a backward pass the gradient of its input, not that of its own: two thirds of
a trained one's work. Layers below all that is trained cost none. Where nothing is frozen the
figures are those of `models.flops`, which says what is counted.

Letters: B rows, S positions.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from torch import nn

from models.config import LlamaConfig
from models.flops import head_flops, layer_flops, layer_shapes, recomputed_layer_flops, root_shapes
from models.plan import LayerPlan, Rows

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class UnitShapes:
    """The parameters of a layer, or of what is outside of the layers."""

    all: Shapes
    """Trained and frozen, in the model's order; adapters are among them."""
    trained: Shapes

    @property
    def frozen(self) -> int:
        """How many numbers stay as they are."""
        return num_numbers(self.all) - num_numbers(self.trained)


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """A model as far as the cost of training it goes."""

    root: UnitShapes
    """Embedding, norm, head unless tied."""
    layers: tuple[UnitShapes, ...]
    lowest: int
    """The lowest layer that the backward pass runs through; their number if none."""
    trains_head: bool
    """Whether the matrix of the head has a gradient."""

    @property
    def units(self) -> tuple[UnitShapes, ...]:
        """All of them."""
        return (self.root, *self.layers)


def num_numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return how many numbers tensors of these shapes have."""
    return sum(map(prod, shapes))


def all_trained(config: LlamaConfig) -> ModelShapes:
    """Return the shapes of a model of which nothing is frozen."""
    root, layer = tuple(root_shapes(config)), tuple(layer_shapes(config))
    layers = (UnitShapes(layer, layer),) * config.num_hidden_layers
    return ModelShapes(UnitShapes(root, root), layers, lowest=0, trains_head=True)


def shapes_of(model: nn.Module, config: LlamaConfig) -> ModelShapes:
    """Return the shapes of a model, whole and on any device, that knows what of it is trained."""
    units: list[list[nn.Parameter]] = [[] for _ in range(config.num_hidden_layers + 1)]
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        found = re.match(r"model\.layers\.(\d+)\.", name)
        units[-1 if found is None else int(found[1])].append(parameter)
    *layers, root = (
        UnitShapes(
            tuple(tuple(p.shape) for p in unit),
            tuple(tuple(p.shape) for p in unit if p.requires_grad),
        )
        for unit in units
    )
    embedding = named["model.embed_tokens.weight"]
    lowest = next((index for index, unit in enumerate(layers) if unit.trained), len(layers))
    return ModelShapes(
        root,
        tuple(layers),
        lowest=0 if embedding.requires_grad else lowest,
        trains_head=named.get("lm_head.weight", embedding).requires_grad,
    )


def trained_layer_flops(
    config: LlamaConfig, parts: ModelShapes, layer: int, *, rows: float, seq_len: int
) -> float:
    """Return the operations of a layer's forward and backward pass on (B, S)."""
    unit = parts.layers[layer]
    whole = num_numbers(shape for shape in unit.all if len(shape) == 2)
    trained = num_numbers(shape for shape in unit.trained if len(shape) == 2)
    plain = num_numbers(shape for shape in layer_shapes(config) if len(shape) == 2)
    product = 2.0 * rows * seq_len
    forward = rows * layer_flops(config, 1, seq_len) + product * (whole - plain)
    if layer < parts.lowest:
        return forward
    return 3 * forward - product * (whole - trained)


def recomputed_flops(
    config: LlamaConfig, parts: ModelShapes, layer: int, *, rows: float, seq_len: int
) -> float:
    """Return what recomputation repeats of a layer on (B, S), adapters left out."""
    return 0.0 if layer < parts.lowest else rows * recomputed_layer_flops(config, 1, seq_len)


def trained_head_flops(
    config: LlamaConfig, parts: ModelShapes, *, rows: int, seq_len: int
) -> float:
    """Return the operations of one exit's logits (B, S, V) and what goes back from them."""
    return (3 if parts.trains_head else 2) * head_flops(config, rows, seq_len)


def training_flops_of_plan(
    plan: LayerPlan,
    config: LlamaConfig,
    parts: ModelShapes,
    *,
    rows: int,
    seq_len: int,
    num_exits: int,
) -> float:
    """Return the operations of training with a plan on a batch (B, S) with so many exits."""
    heads = num_exits * trained_head_flops(config, parts, rows=rows, seq_len=seq_len)
    ran = (
        (v.layer, v.gate.rows.numel() if isinstance(v.gate, Rows) else rows) for v in plan.visits
    )
    return heads + sum(
        trained_layer_flops(config, parts, layer, rows=count, seq_len=seq_len)
        for layer, count in ran
    )
