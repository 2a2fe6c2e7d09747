"""Conversations as token ids, worded by a tokenizer's chat template."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from data_pipelines.tokenize import HuggingFaceTokenizer, Tokenizer


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return a conversation as ids, ready for the assistant to go on.

    Args:
        tokenizer: one of transformers that has a chat template.
        messages: each with `role` and `content`, the last one the user's.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.tokenizer.chat_template:
        raise ValueError(
            "chat=true needs a chat template, and this tokenizer has none: leave it out"
        )
    text = tokenizer.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )
    return tokenizer.encode(str(text))


def encode_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return a conversation to learn from as ids, ~id for what is not the assistant's.

    A template that marks its `generation` parts decides itself what is the assistant's. For another
    one it is what a turn adds to the conversation up to it with the prompt to answer.

    Raises:
        ValueError: if the tokenizer has no chat template, or one that refuses the conversation or
            words its beginning otherwise than the whole.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer) or not tokenizer.tokenizer.chat_template:
        raise ValueError(
            "chat messages need a chat template, and this tokenizer has none: take another "
            "tokenizer with data.tokenizer.path, or a format without messages"
        )
    inner, turns = tokenizer.tokenizer, list(messages)
    try:
        return _encode_messages(tokenizer, inner, turns)
    except TemplateError as error:
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation that begins {turns[0]!r:.60}: "
            f"{error}"
        ) from None


def _encode_messages(tokenizer: Tokenizer, inner: Any, turns: list[Mapping[str, str]]) -> list[int]:
    if re.search(r"\{%-?\s*generation\s*-?%\}", str(inner.chat_template)):
        marked = inner.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
        return [i if learnt else ~i for i, learnt in pairs]
    return [
        i if learnt else ~i for text, learnt in _parts(inner, turns) for i in tokenizer.encode(text)
    ]


def _parts(inner: Any, turns: list[Mapping[str, str]]) -> Iterator[tuple[str, bool]]:
    """Yield the wording of a conversation in pieces, each with whether it is the assistant's."""
    whole = str(inner.apply_chat_template(turns, tokenize=False))
    said = ""
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        asked = ""  # transformers words no conversation of nobody
        if number:
            asked = inner.apply_chat_template(
                turns[:number], tokenize=False, add_generation_prompt=True
            )
        answered = str(inner.apply_chat_template(turns[: number + 1], tokenize=False))
        if not (asked.startswith(said) and answered.startswith(asked)) or not whole.startswith(
            answered
        ):
            raise ValueError(
                "the tokenizer's chat template words the beginning of a conversation otherwise "
                "than the whole, so that its answers cannot be found: mark them in the template "
                "with {% generation %}"
            )
        yield asked[len(said) :], False
        yield answered[len(asked) :], True
        said = answered
    yield whole[len(said) :], False
