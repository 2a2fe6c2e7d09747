"""What every side trains: one shape, one batch size, one precision, the same weights and tokens.

Imports torch only: it runs in the environment of every peer.

Letters: B rows, S positions.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "mixed", "pure"]
"""float32; float32 weights and moments with bfloat16 products; or bfloat16 everything."""

LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0

NUM_BATCHES = 8
"""Different batches; after them they come again."""
IGNORED = -100
"""The label of a position that is not predicted: the last of each row, as in Hugging Face."""
LAST_STEP = 100_000
"""For sides that must know how long they train: longer than any benchmark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one side is asked to train; travels between processes as JSON."""

    model: dict[str, Any]
    """The fields of `models.config.LlamaConfig`, which are those of a Hugging Face config."""
    weights: str
    """Hugging Face folder with the weights that all sides start from."""
    rows: int
    """B, sequences of a step."""
    seq_len: int
    """S."""
    precision: Precision
    compile: bool
    """Whether to compile, in the way that this side's own recipe does."""
    scratch: str
    """Folder for whatever a side insists on writing."""


def batches(case: Case) -> list[Tensor]:
    """Return the token ids (B, S) of `NUM_BATCHES` steps, the same on every side."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_BATCHES, case.rows, case.seq_len)
    return list(torch.randint(0, case.model["vocab_size"], shape, generator=generator))
