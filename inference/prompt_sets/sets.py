"""The data sets that have a name here: their columns, their prompts, and where the hub has them.

Prompts are worded as in LayerSkip's evaluation (arXiv 2404.16710, section 6), so that figures can
be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipelines.records import Record
from inference.prompt_sets.prompt import Prompt

PREFIX_WORDS = 100
"""Of an article, where continuing it is the task."""


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Where `datasets` finds a set."""

    name: str
    config: str | None = None
    split: str = "test"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """How rows become prompts."""

    columns: tuple[str, ...]
    """What every row must have."""
    prompt: Callable[[Record, str, int], Prompt]
    """From a row, the words for its place, and its number from 1."""
    hub: HubPlace | None


def _custom(row: Record, where: str, number: int) -> Prompt:
    references = (_text(row, "reference", where),) if "reference" in row else ()
    return Prompt(str(row.get("id", number)), _text(row, "prompt", where), references)


def _spec_bench(row: Record, where: str, number: int) -> Prompt:
    """Take the first turn: the others answer what a model has said."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ValueError(f"{where}: turns must be a list of texts, got {turns!r:.60}")
    return Prompt(str(row["question_id"]), turns[0])


def _summary(article: str, summary: str) -> Callable[[Record, str, int], Prompt]:
    def prompt(row: Record, where: str, number: int) -> Prompt:
        text = f"Article: {_text(row, article, where)}\nSummary:"
        return Prompt(str(row.get("id", number)), text, (_text(row, summary, where),))

    return prompt


def _article_prefix(row: Record, where: str, number: int) -> Prompt:
    words = _text(row, "article", where).split()
    first, rest = (" ".join(part) for part in (words[:PREFIX_WORDS], words[PREFIX_WORDS:]))
    return Prompt(str(row.get("id", number)), first, (rest,) if rest else ())


def _human_eval(row: Record, where: str, number: int) -> Prompt:
    solution = _text(row, "canonical_solution", where)
    return Prompt(str(row.get("task_id", number)), _text(row, "prompt", where), (solution,))


def _top_v2(row: Record, where: str, number: int) -> Prompt:
    parse = _text(row, "semantic_parse", where)
    return Prompt(str(row.get("id", number)), _text(row, "utterance", where), (parse,))


def _text(row: Record, column: str, where: str) -> str:
    value: Any = row[column]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column} must be a text, got {value!r:.60}")
    return value


CUSTOM = PromptSet(("prompt",), _custom, None)
"""JSON lines of one's own: prompt, and if there are any, id and reference."""

_NEWS = HubPlace("abisee/cnn_dailymail", "3.0.0")
SETS = {
    "spec_bench": PromptSet(("question_id", "turns"), _spec_bench, None),
    "cnn_dm": PromptSet(("article", "highlights"), _summary("article", "highlights"), _NEWS),
    "cnn_dm_lm": PromptSet(("article",), _article_prefix, _NEWS),
    "xsum": PromptSet(
        ("document", "summary"), _summary("document", "summary"), HubPlace("EdinburghNLP/xsum")
    ),
    "human_eval": PromptSet(
        ("prompt", "canonical_solution"), _human_eval, HubPlace("openai/openai_humaneval")
    ),
    "top_v2": PromptSet(("utterance", "semantic_parse"), _top_v2, HubPlace("WillHeld/top_v2")),
}
"""By the name that `prompts=` takes."""
