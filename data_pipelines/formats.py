"""Rows of instruction data as samples: a prompt that is read, an answer that is learnt.

A sample travels as JSON text, so that it is stored, hashed and dealt out as a plain document is,
and becomes token ids as one. An id of a token that is read but not predicted is stored as ~id.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.chat import encode_messages
from data_pipelines.config import Format
from data_pipelines.json_row import checked_text
from data_pipelines.records import Record
from data_pipelines.tokenize import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """How a row becomes prompt and answer. Prompts are worded as `inference` words them."""

    columns: tuple[str, str]
    """Which hold the question and the answer."""
    prompt: str = "{}"
    """The question with the words around it."""
    separator: str = ""
    """Between prompt and answer, learnt as the answer's beginning; not used in a chat."""


PAIRS: dict[Format, Pair] = {
    "prompt_response": Pair(("prompt", "response")),
    "top_v2": Pair(("utterance", "semantic_parse"), separator="\n"),
    "gsm8k": Pair(("question", "answer"), "Question: {}\nAnswer:", " "),
    "human_eval": Pair(("prompt", "canonical_solution")),
    "cnn_dm": Pair(("article", "highlights"), "Article: {}\nSummary:", " "),
    "xsum": Pair(("document", "summary"), "Article: {}\nSummary:", " "),
}
"""Formats with a prompt and a response, by name; LayerSkip (arXiv 2404.16710) measures on these."""


def columns_of(row_format: Format) -> tuple[str, ...]:
    """Return the columns that every row of an instruction format must have."""
    return ("messages",) if row_format == "chat" else PAIRS[row_format].columns


def sample_text(row: Record, row_format: Format, where: str, *, chat_template: bool) -> str:
    """Return a row as the JSON text of a sample.

    Args:
        row: has the format's columns.
        row_format: any but "text".
        where: words for the row's place.
        chat_template: word prompt and response as messages.

    Raises:
        ValueError: naming the place, if a column does not hold what the format wants.
    """
    if row_format == "chat":
        return json.dumps({"messages": _messages(row["messages"], where)}, ensure_ascii=False)
    pair = PAIRS[row_format]
    question, answer = (checked_text(row[column], column, where) for column in pair.columns)
    prompt = pair.prompt.replace("{}", question)
    if chat_template:
        messages = [("user", prompt), ("assistant", answer)]
        named = [{"role": role, "content": content} for role, content in messages]
        return json.dumps({"messages": named}, ensure_ascii=False)
    sample = {"prompt": prompt, "response": pair.separator + answer}
    return json.dumps(sample, ensure_ascii=False)


def plain_text(sample: str) -> str:
    """Return the words of a sample's JSON text, to train a tokenizer on."""
    content = json.loads(sample)
    messages = content.get("messages")
    if messages is None:
        return f"{content['prompt']}{content['response']}"
    return "\n".join(message["content"] for message in messages)


def encode_sample(tokenizer: Tokenizer, sample: str, seq_len: int) -> list[int]:
    """Return the token ids of a sample, ~id for each token that is not to be predicted.

    Prompt and response are tokenised apart, as they are when a model answers; the response ends
    with the end-of-document token. What is beyond seq_len + 1 tokens is cut off; a sample is empty
    if nothing to predict is left.

    Raises:
        ValueError: if messages meet a tokenizer without a chat template.
    """
    content = json.loads(sample)
    if "messages" in content:
        ids = encode_messages(tokenizer, content["messages"])
    else:
        prompt = tokenizer.encode(content["prompt"])
        ids = [~i for i in prompt] + [*tokenizer.encode(content["response"]), tokenizer.eos_id]
    ids = ids[: seq_len + 1]
    return ids if any(i >= 0 for i in ids[1:]) else []


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{where}: messages must be a list of messages, got {value!r:.60}")
    for message in value:
        parts = message if isinstance(message, dict) else {}
        if not all(isinstance(parts.get(key), str) for key in ("role", "content")):
            raise ValueError(f"{where}: a message needs role and content, got {message!r:.60}")
        checked_text(parts["content"], "content", where)
    if not any(message["role"] == "assistant" for message in value):
        raise ValueError(f"{where}: no message is the assistant's: there is nothing to learn")
    return [{"role": m["role"], "content": m["content"]} for m in value]
