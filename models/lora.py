"""Low-rank adapters (LoRA, arXiv 2106.09685) of the linear layers, as the package `peft` has them.

y = W x + (alpha / r) B (A x): W stays as it is, A (r, in) and B (out, r) are trained. B begins as
zeros, so that the adapted model begins as the model that it adapts.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from models.init import Assign, copy_whole, derive_seed
from models.llama import Llama

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A linear layer of every transformer layer."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ADAPTER = re.compile(r"model\.(?P<layer>.+)\.lora_(?P<matrix>[AB])\.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Train small matrices beside frozen weights (LoRA, arXiv 2106.09685)."""

    rank: int = 8
    """r: rows of A and columns of B."""
    alpha: float = 8.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapters' input that is dropped while training."""
    targets: tuple[Target, ...] = ("q_proj", "v_proj")
    """Which linear layers get adapters, in every layer of the model."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}; 8 is usual")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"lora.targets must name some linear layers, each once, got {list(self.targets)}"
            )

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """A linear layer whose own weight and bias are frozen, with adapters beside them."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        super().__init__(
            base.in_features, base.out_features, bias=base.bias is not None, device="meta"
        )
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, config.rank, bias=False, **place)
        self.lora_B = nn.Linear(config.rank, base.out_features, bias=False, **place)
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) from x (..., in).

        Inputs of the adapters are dropped where gradients are computed, so not in a validation.
        """
        dropped = x
        if self.dropout and self.training and torch.is_grad_enabled():
            dropped = dropout(x, self.dropout)
        added: Tensor = self.lora_B(self.lora_A(dropped))
        return linear(x, self.weight, self.bias) + added * self.scale


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ADAPTER.fullmatch(name) is not None


def add_adapters(model: Llama, config: LoraConfig) -> None:
    """Put adapters beside the linear layers that the config names; freeze all else, in place.

    The adapters have the device and type of what they are beside; `init_adapters` fills them.
    """
    model.requires_grad_(False)
    for layer in model.layers.values():
        for name in config.targets:
            branch = cast(nn.Module, layer.self_attn if name in ATTENTION else layer.mlp)
            branch.add_module(name, LoraLinear(cast(nn.Linear, getattr(branch, name)), config))


@torch.no_grad()
def init_adapters(
    named: Iterable[tuple[str, nn.Parameter]], *, seed: int, assign: Assign = copy_whole
) -> None:
    """Fill the adapters among some parameters: A uniform as `peft` does it, B zeros.

    A is `kaiming_uniform_(a=sqrt(5))`: uniform within 1 / sqrt(in). Each draws from a generator of
    its own, seeded by its name, so that values do not depend on who holds them.
    """
    for name, parameter in named:
        found = ADAPTER.fullmatch(name)
        if found is None:
            continue
        fresh = torch.zeros(parameter.shape, dtype=torch.float32)
        if found["matrix"] == "A":
            generator = torch.Generator().manual_seed(derive_seed("lora", seed, name))
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        assign(parameter, fresh)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + scale B A (O, I), computed in float32 at least; of R ranks, I inputs, O outputs.

    Args:
        weight: (O, I), or a part of its rows and columns.
        a: (R, I), the same columns.
        b: (O, R), the same rows.
        scale: of the config.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)
