"""What one generation works on, made once at its start: rotary angles, masks, cache, randomness.

Letters: S positions in flight, T longest sequence, E head width, Q most queries at once,
N positions that logits are of, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.cache import KVCache
from inference.generation import Settings
from inference.process import Processing, make_processing
from models.config import LlamaConfig
from models.llama import Llama
from models.plan import LayerPlan
from models.rope import rotary_angles
from models.tokens import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Workspace:
    """Tables that every pass takes views of, and the state; the model itself keeps none."""

    cos: Tensor
    """(1, T, E), in the model's dtype."""
    sin: Tensor
    """As cos."""
    band: Tensor
    """(Q, 2T), row i is 0 up to column i + T and -inf beyond: every causal mask is a window of it.
    Added to the scores as it is; a boolean one would be converted by every layer."""
    cache: KVCache
    generator: torch.Generator
    """Seeded by the settings; every draw of the generation comes from it."""
    processing: Processing | None
    """What changes the logits before a token is chosen, if anything does."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.cos.device

    def tokens(self, start: int, count: int) -> Tokens:
        """Return the side data of `count` positions (1, S) that follow `start` cached ones.

        Only several queries after cached positions need a mask.
        """
        mask = None
        if start and count > 1:
            shift = self.band.shape[1] // 2 - start
            mask = self.band.narrow(0, 0, count).narrow(1, shift, start + count)  # (S, start + S)
        return Tokens(
            self.cos.narrow(1, start, count), self.sin.narrow(1, start, count), mask, self.cache
        )

    def read(self, start: int, ids: Tensor) -> None:
        """Note the ids (1, S) of a pass that follows `start` positions, if anyone will ask."""
        if self.processing is not None:
            self.processing.read(start, ids)

    def change(self, logits: Tensor, end: int) -> Tensor:
        """Return logits (N, V), processed, of the last N of the first `end` positions read."""
        return logits if self.processing is None else self.processing.change(logits, end)


def prepare(
    model: Llama,
    prompt_ids: Sequence[int],
    settings: Settings,
    plans: Sequence[LayerPlan],
    *,
    max_queries: int = 1,
) -> Workspace:
    """Return tables and buffers for the layers that the plans visit.

    Args:
        model: gives shapes, dtype and device.
        prompt_ids: S ids.
        settings: give the length; the last new token is never read, so T is one less.
        plans: all plans that will run.
        max_queries: Q, the most positions of one pass, the prompt's apart.

    Raises:
        ValueError: if the prompt is empty, too long, or not of the model's vocabulary.
    """
    check_prompt(model.config, prompt_ids, settings.max_new_tokens)
    weight = model.model.embed_tokens.weight
    dtype, device = weight.dtype, weight.device
    max_length = len(prompt_ids) + settings.max_new_tokens - 1
    positions = torch.arange(max_length, device=device)[None]  # (1, T)
    cos, sin = rotary_angles(positions, model.config)  # (1, T, E)
    never = torch.full((max_queries, 2 * max_length), float("-inf"), dtype=dtype, device=device)
    cache = KVCache(
        model.config,
        layers=sorted({visit.layer for plan in plans for visit in plan.visits}),
        max_length=max_length,
        dtype=dtype,
        device=device,
    )
    generator = torch.Generator(device).manual_seed(settings.seed)
    processing = make_processing(
        model.config, settings, prompt_length=len(prompt_ids), device=device
    )
    return Workspace(
        cos.to(dtype), sin.to(dtype), never.triu(max_length + 1), cache, generator, processing
    )


def check_prompt(config: LlamaConfig, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
    """Refuse what the model cannot continue.

    Raises:
        ValueError: if the prompt is empty, too long, or not of the model's vocabulary.
    """
    length, context = len(prompt_ids), config.max_position_embeddings
    if not length:
        raise ValueError("the prompt is empty: give at least one token")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < config.vocab_size:
        raise ValueError(
            f"the prompt has token ids {min(prompt_ids)}..{max(prompt_ids)}, the model's "
            f"vocabulary is 0..{config.vocab_size - 1}: use the model's own tokenizer"
        )
    if length + max_new_tokens > context:
        remedy = f"max_new_tokens={context - length} fits" if length < context else "shorten it"
        raise ValueError(
            f"the prompt has {length} tokens and max_new_tokens={max_new_tokens}, but the model's "
            f"context is {context}: {remedy}"
        )
