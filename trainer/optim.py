"""AdamW (arXiv 1711.05101) with weight decay on matrices only."""

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and gradient clipping."""

    lr: float
    """Peak learning rate. From scratch, layer dropout wants 2 to 3 times the usual one."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.1
    """Pull towards 0 of matrices, embeddings among them; norms and biases have none."""
    clip_norm: float | None = 1.0
    """Longest gradient, over all parameters; null does not clip."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must both be in [0, 1), got {list(self.betas)}")
        if not self.eps > 0:
            raise ValueError(f"optim.eps must be positive, got {self.eps}")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must be >= 0, got {self.weight_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"optim.clip_norm must be positive, got {self.clip_norm}; null does not clip"
            )


def build_adamw(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over a model's parameters in two groups: decayed matrices, then all the rest.

    Parameters may be sharded, so the groups do not depend on what shapes they show. Parameters that
    need no gradient are left out.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    multiply = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding))
    matrices = {id(m.weight) for m in multiply}
    groups = [
        {
            "params": [p for p in trained if id(p) in matrices],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in trained if id(p) not in matrices], "weight_decay": 0.0},
    ]
    # Fused is the fastest also on CPU and on FSDP2's DTensors: 12M parameters on one thread take
    # 20 ms against 70 of foreach; the default falls back to a loop over DTensors, 110 ms and more.
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
