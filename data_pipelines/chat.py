"""Conversations as token ids, worded by a tokenizer's chat template."""

from collections.abc import Mapping, Sequence

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
