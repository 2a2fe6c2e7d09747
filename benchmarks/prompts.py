"""Prompts that the model has not been trained on: how validation documents begin.

Letters: S positions of a packed sequence, N sequences, T = N * S tokens of the split.
"""

import numpy as np
import torch

from data_pipelines.loader import Split


def held_out_prompts(split: Split, *, count: int, length: int) -> list[list[int]]:
    """Return the first `length` tokens of `count` documents spread evenly over the split.

    Documents that end within their prompt are left out.

    Raises:
        ValueError: if the split has fewer such documents.
    """
    ids, documents = split.rows(np.arange(len(split)))  # (N, S + 1), the last token repeated
    stream, numbers = ids[:, :-1].flatten(), documents[:, :-1].flatten()  # (T,)
    _, sizes = torch.unique_consecutive(numbers, return_counts=True)
    starts = (sizes.cumsum(0) - sizes)[sizes > length].tolist()
    if len(starts) < count:
        raise ValueError(
            f"the validation split has {len(starts)} documents of more than {length} tokens, but "
            f"{count} prompts were asked for: raise data.valid_fraction"
        )
    chosen = [starts[i * len(starts) // count] for i in range(count)]
    return [stream[start : start + length].tolist() for start in chosen]
