"""Log-likelihoods of continuations at any exit, in batches.

Letters: B texts at once, S longest of them, D width, V vocabulary, K scored positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from inference.perplexity import POSITIONS_AT_ONCE
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens


@dataclass(frozen=True, slots=True)
class Scored:
    """What an exit makes of a continuation."""

    logprob: float
    """Sum of the logarithms of the probabilities of its tokens."""
    is_greedy: bool
    """Whether each of them is the exit's likeliest."""


@dataclass(frozen=True, slots=True)
class Question:
    """A continuation whose likelihood is wanted."""

    before: tuple[int, ...]
    """At least one token."""
    after: tuple[int, ...]
    """At least one token."""

    def read(self, max_length: int) -> tuple[int, ...]:
        """Return the tokens that the model reads: without the last, and the end of a long text."""
        return (*self.before, *self.after)[-max_length - 1 : -1]


@torch.inference_mode()
def log_likelihoods(
    model: Llama,
    questions: Sequence[Question],
    *,
    exit_layer: int,
    batch_size: int,
    max_length: int,
) -> list[Scored]:
    """Return the scores of continuations, in order; texts read alike are read once.

    Args:
        model: in any dtype; log-probabilities are taken in float32 at least.
        questions: texts and their continuations.
        exit_layer: 1..L, whose norm and head answer.
        batch_size: B; texts of like length go together, padded at the end, where nothing looks.
        max_length: longer texts lose their beginning.

    Raises:
        ValueError: if a continuation alone is longer than that.
    """
    texts = dict[tuple[int, ...], list[int]]()
    for index, question in enumerate(questions):
        if len(question.after) > max_length:
            raise ValueError(
                f"a continuation has {len(question.after)} tokens, and the longest text is "
                f"{max_length}: raise max_length"
            )
        texts.setdefault(question.read(max_length), []).append(index)
    scores = dict[int, Scored]()
    order = sorted(texts, key=lambda text: (-len(text), text))  # what is too large fails at once
    with tqdm(total=len(questions), unit="text", dynamic_ncols=True, disable=None) as bar:
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            for text, h in zip(some, _states(model, some, exit_layer), strict=True):
                for index in texts[text]:
                    scores[index] = _score(model, h, questions[index].after)
                    bar.update()
    return [scores[index] for index in range(len(questions))]


def _states(model: Llama, texts: Sequence[Sequence[int]], exit_layer: int) -> Iterator[Tensor]:
    """Yield the exit's states (S, D) of each text, without those of the padding."""
    device = model.model.embed_tokens.weight.device
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    tokens = make_tokens(model.config, torch.arange(longest, device=device)[None])
    h = model(ids, tokens, full(exit_layer))[exit_layer]  # (B, S, D)
    yield from (row[: len(text)] for row, text in zip(h, texts, strict=True))


def _score(model: Llama, h: Tensor, after: Sequence[int]) -> Scored:
    """Score the tokens that end a text with states h (S, D); a few logits (K, V) at a time."""
    targets = torch.tensor(list(after), device=h.device)  # (K,)
    total, greedy = 0.0, True
    states = h[-len(after) :]  # (K, D)
    for start in range(0, len(after), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        right, logits = targets[part], model.unembed(states[part])  # (K,), (K, V)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total += float(logits.log_softmax(-1).gather(1, right[:, None]).sum(dtype=torch.float64))
        greedy = greedy and bool((logits.argmax(-1) == right).all())
    return Scored(total, greedy)
