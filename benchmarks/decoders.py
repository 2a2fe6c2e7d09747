"""The decoders that `benchmarks.decode` compares: same weights and prompts, ours and others'.

Letters: V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from inference.batch import BatchSettings, decode_batch
from inference.generate import autoregressive
from inference.generation import Decode, Generation, Settings
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import full

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What one decoder made of all prompts."""

    tokens: int
    drafted: int = 0
    accepted: int = 0
    token_ids: tuple[tuple[int, ...], ...] = ()


Job = Callable[[], Decoded]


def one_by_one(decode: Decode, prompts: Prompts) -> Decoded:
    """Continue the prompts one after another."""
    made = [Generation(tuple(decode(prompt))) for prompt in prompts]
    return Decoded(
        tokens=sum(len(each.token_ids) for each in made),
        drafted=sum(sum(each.draft_counts) for each in made),
        accepted=sum(sum(each.accept_counts) for each in made),
        token_ids=tuple(tuple(each.token_ids) for each in made),
    )


def ours(model: Llama, prompts: Prompts, settings: Settings) -> Job:
    """Return our autoregressive decoding."""
    plan = full(model.config.num_hidden_layers)
    return partial(
        one_by_one, partial(autoregressive, model, plan=plan, settings=settings), prompts
    )


def ours_drafting(
    model: Llama, prompts: Prompts, settings: Settings, *, exit_layer: int, drafts: int
) -> Job:
    """Return our self-speculation from an exit."""
    decode = partial(
        self_speculative,
        model,
        draft=full(exit_layer),
        num_speculations=drafts,
        settings=settings,
    )
    return partial(one_by_one, decode, prompts)


def ours_batched(model: Llama, prompts: Prompts, settings: Settings, batch: BatchSettings) -> Job:
    """Return our decoding of all prompts at once."""

    def job() -> Decoded:
        rounds = [each for _, each in decode_batch(model, prompts, batch=batch, settings=settings)]
        return Decoded(
            tokens=sum(len(each.tokens) for each in rounds),
            drafted=sum(each.drafted for each in rounds),
            accepted=sum(each.accepted for each in rounds),
        )

    return job


def hugging_face(
    model: Any,
    prompts: Prompts,
    new_tokens: int,
    *,
    exit_layer: int | None = None,
    drafts: int = 0,
) -> Job:
    """Return transformers' `generate` of a `LlamaForCausalLM`, with `assistant_early_exit` or not.

    The draft length is read from the model's own generation config, so it is set there for each
    run; a constant schedule without a confidence threshold drafts as many as ours.
    """
    changes: dict[str, Any] = {} if exit_layer is None else {"assistant_early_exit": exit_layer}

    def job() -> Decoded:
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            num_assistant_tokens=drafts or None,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        outputs = []
        with torch.inference_mode():
            for prompt in prompts:
                ids = torch.tensor([list(prompt)])
                made = model.generate(ids, attention_mask=torch.ones_like(ids), **changes)
                outputs.append(tuple(made[0, len(prompt) :].tolist()))
        return Decoded(tokens=sum(map(len, outputs)), token_ids=tuple(outputs))

    return job
