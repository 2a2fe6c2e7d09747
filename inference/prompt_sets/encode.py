"""Prompts as token ids, those that do not fit refused or left out before any are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.chat import encode_chat
from inference.load import Loaded
from inference.prompt_sets.prompt import Prompt, sample
from inference.workspace import check_prompt


@dataclass(frozen=True, slots=True)
class Samples:
    """The prompts that all settings are measured on."""

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each."""
    left_out: int = 0
    """Prompts of the set that were too long to be chosen."""


def prompt_ids(loaded: Loaded, text: str, *, chat: bool) -> list[int]:
    """Return the ids of a prompt: of the text itself, or of it as a user's message.

    Raises:
        ValueError: if it is empty, or there is no chat template.
    """
    if chat:
        return encode_chat(loaded.tokenizer, [{"role": "user", "content": text}])
    return loaded.encode(text)


def encode_sample(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    *,
    count: int | None,
    seed: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None,
    chat: bool = False,
) -> Samples:
    """Return a sample of the prompts, as text and as token ids.

    Args:
        loaded: gives the tokenizer and the context.
        prompts: the whole set.
        count: how many to take; None takes all.
        seed: which ones.
        max_new_tokens: must fit the context with every prompt.
        max_prompt_tokens: longer ones are left out; None leaves out none.
        chat: word them by the chat template.

    Raises:
        ValueError: if a chosen prompt does not fit, or none is left.
    """
    fitting = prompts
    if max_prompt_tokens is not None:
        fitting = [
            each
            for each in prompts
            if len(prompt_ids(loaded, each.text, chat=chat)) <= max_prompt_tokens
        ]
        if not fitting:
            raise ValueError(
                f"max_prompt_tokens={max_prompt_tokens} leaves out all {len(prompts)} prompts: "
                "raise it"
            )
    chosen = sample(fitting, count, seed)
    ids = tuple(_encoded(loaded, each, max_new_tokens, chat=chat) for each in chosen)
    return Samples(tuple(chosen), ids, len(prompts) - len(fitting))


def _encoded(loaded: Loaded, prompt: Prompt, max_new_tokens: int, *, chat: bool) -> tuple[int, ...]:
    ids = prompt_ids(loaded, prompt.text, chat=chat)
    try:
        check_prompt(loaded.config, ids, max_new_tokens)
    except ValueError as error:
        room = loaded.config.max_position_embeddings - max_new_tokens
        remedy = f"; max_prompt_tokens={room} leaves such prompts out" if room > 0 else ""
        raise ValueError(f"prompt {prompt.id}: {error}{remedy}") from None
    return tuple(ids)
