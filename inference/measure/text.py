"""How near texts come to their references: ROUGE (Lin, 2004) and exact match."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

WORD = re.compile(r"[^\W_]+")
"""Letters and digits in a row, of any script; there is no stemming."""


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return WORD.findall(text.lower())


def rouge_n(found: str, reference: str, n: int) -> float:
    """Return the F1 of the n-grams that two texts share, each as often as both have it."""
    ours, theirs = (_grams(words(text), n) for text in (found, reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(found: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words."""
    ours, theirs = words(found), words(reference)
    return _f1(_common(ours, theirs), len(ours), len(theirs))


def exact_match(found: str, reference: str) -> float:
    """Return 1 if the texts are equal but for white space around them, else 0."""
    return float(found.strip() == reference.strip())


def text_figures(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float] | None:
    """Return the mean of each metric over texts, each held against its best reference.

    Texts without a reference are left out; None if no text has one.
    """
    pairs = [pair for pair in zip(texts, references, strict=True) if pair[1]]
    if not pairs:
        return None
    metrics = {
        "rouge1": lambda found, right: rouge_n(found, right, 1),
        "rouge2": lambda found, right: rouge_n(found, right, 2),
        "rougeL": rouge_l,
        "exact_match": exact_match,
    }
    return {
        name: fmean(max(metric(found, right) for right in rights) for found, rights in pairs)
        for name, metric in metrics.items()
    }


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0


def _common(ours: list[str], theirs: list[str]) -> int:
    """Return the length of the longest common subsequence; row by row of the usual table."""
    row = [0] * (len(theirs) + 1)
    for word in ours:
        last = row
        row = [0]
        for index, other in enumerate(theirs):
            row.append(last[index] + 1 if word == other else max(last[index + 1], row[-1]))
    return row[-1]
