"""Texts that a task asks for: up to stop strings, by any way of decoding, in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from inference.batch import BatchSettings, generate_batch
from inference.evaluate.questions import encode_text, first_token
from inference.generation import Settings
from inference.load import Loaded
from inference.sample import SamplingConfig
from inference.stop import StopStrings
from inference.stream import text_of

DEFAULT_TOKENS = 256
"""As lm-eval's own models."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most new tokens; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a task wants its texts."""

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: SamplingConfig


def wanted(arguments: Mapping[str, Any]) -> Wanted:
    """Return what a task's generation_kwargs mean.

    Raises:
        ValueError: if one of them is unknown here.
    """
    rest = dict(arguments)
    until = rest.pop("until", None) or []
    lengths = [rest.pop(name) for name in LENGTHS if rest.get(name) is not None]
    temperature = float(rest.pop("temperature", None) or 0.0)
    if not rest.pop("do_sample", temperature > 0):
        temperature = 0.0
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=int(rest.pop("top_k", None) or 0) if temperature else 0,
        top_p=float(rest.pop("top_p", None) or 1.0) if temperature else 1.0,
    )
    unknown = [name for name, value in rest.items() if value is not None]
    if unknown:
        raise ValueError(
            f"a task asks for {unknown[0]}={rest[unknown[0]]!r} in generation_kwargs, which this "
            "model does not know"
        )
    strings = [until] if isinstance(until, str) else until
    length = int(lengths[0]) if lengths else DEFAULT_TOKENS
    return Wanted(tuple(s for s in strings if s), length, sampling)


def generate_texts(
    loaded: Loaded,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    batch: BatchSettings,
    max_length: int,
    seed: int,
) -> list[str]:
    """Return the texts that follow contexts, in order, without the strings that end them.

    Args:
        loaded: the model.
        requests: contexts, and what their task wants.
        batch: how many at once, by which exit, verified or not.
        max_length: long contexts lose their beginning, so that the new tokens fit, too.
        seed: of the first text; the others have the seeds after it.

    Raises:
        ValueError: if a task wants what cannot be had; nothing has been decoded then.
    """
    groups = dict[Wanted, list[int]]()
    for index, (_, arguments) in enumerate(requests):
        groups.setdefault(wanted(arguments), []).append(index)
    for each in groups:
        if each.max_new_tokens >= max_length:
            raise ValueError(
                f"a task asks for {each.max_new_tokens} new tokens, but the longest text is "
                f"{max_length}: it needs a model with a longer context"
            )
    texts = [""] * len(requests)
    with tqdm(total=len(requests), unit="text", dynamic_ncols=True, disable=None) as bar:
        for each, members in groups.items():
            room = max_length - each.max_new_tokens
            prompts = [_context(loaded, requests[index][0], room) for index in members]
            generations = generate_batch(
                loaded.model,
                prompts,
                batch=batch,
                settings=_settings(loaded, each),
                seeds=[seed + index for index in members],
            )
            for index, ids, generation in zip(members, prompts, generations, strict=True):
                texts[index] = text_of(loaded.decode, ids, generation.token_ids, each.until)
                bar.update()
    return texts


def _context(loaded: Loaded, text: str, room: int) -> list[int]:
    return list(encode_text(loaded, text) or (first_token(loaded),))[-room:]


def _settings(loaded: Loaded, wanted: Wanted) -> Settings:
    return Settings(
        max_new_tokens=wanted.max_new_tokens,
        sampling=wanted.sampling,
        eos_ids=loaded.eos_ids,
        stop=StopStrings(wanted.until, loaded.decode) if wanted.until else None,
    )
