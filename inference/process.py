"""Logits processors: every prefix of a sequence, drafts included, has its own logits changed.

They have the signature of transformers' `LogitsProcessor`, so those can be used as they are.

Letters: S positions in flight, T longest sequence, N positions that logits are of, V vocabulary.
"""

import torch
from torch import Tensor

from inference.generation import Settings
from inference.sample import in_precision
from models.config import LlamaConfig


class Processing:
    """The ids of one sequence as passes read them, and what is done to the logits after each."""

    def __init__(
        self,
        config: LlamaConfig,
        settings: Settings,
        *,
        prompt_length: int,
        device: torch.device,
    ) -> None:
        self._processors = tuple(settings.processors)
        self._min_length = prompt_length + settings.min_new_tokens
        eos_ids = sorted(token for token in settings.eos_ids if token < config.vocab_size)
        self._eos_ids = torch.tensor(eos_ids, dtype=torch.long, device=device)
        length = prompt_length + settings.max_new_tokens
        self._ids = torch.zeros(1, length, dtype=torch.long, device=device)  # (1, T)

    def read(self, start: int, ids: Tensor) -> None:
        """Note the ids (1, S) that follow the first `start` ones; what was noted there is gone."""
        self._ids.narrow(1, start, ids.shape[1]).copy_(ids)

    def change(self, logits: Tensor, end: int) -> Tensor:
        """Return the processed logits (N, V) of the last N of the first `end` positions.

        In float32, or float64 for float64 logits, as transformers hands them over. Each position is
        a call of its own, since the prefixes differ in length.
        """
        rows = torch.split(in_precision(logits), 1)  # N of (1, V)
        first = end - len(rows) + 1
        return torch.cat([self._one(length, row) for length, row in enumerate(rows, first)])

    def _one(self, length: int, scores: Tensor) -> Tensor:
        """Process scores (1, V) after the first `length` ids; in transformers' order."""
        if length < self._min_length:
            scores = scores.index_fill(1, self._eos_ids, float("-inf"))
        for processor in self._processors:
            scores = processor(self._ids.narrow(1, 0, length), scores)
        return scores


def make_processing(
    config: LlamaConfig, settings: Settings, *, prompt_length: int, device: torch.device
) -> Processing | None:
    """Return what changes the logits of one sequence; None if nothing does."""
    if not settings.processors and not (settings.min_new_tokens and settings.eos_ids):
        return None
    return Processing(config, settings, prompt_length=prompt_length, device=device)
