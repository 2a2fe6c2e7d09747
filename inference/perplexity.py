"""Perplexity of a text at every exit of a model, and how often each exit already agrees with it.

Letters: S positions, D width, V vocabulary, X exits, L layers.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_pipelines.records import read_text
from inference.config import check_weights
from inference.load import Loaded
from inference.report import table_lines
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens

POSITIONS_AT_ONCE = 256
"""Logits of so many positions of one exit exist at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerplexityConfig:
    """Which texts to score, and how."""

    texts: str
    """A file: one text, or .jsonl with a key text in each line."""
    window: int | None = None
    """Tokens read together; longer texts are cut into pieces that do not see each other. The
    model's context unless set."""
    max_tokens: int = 100_000
    """Stop when so many tokens have been scored."""
    output: Literal["text", "json"] = "text"
    """text prints a table; json prints one object a line for each exit."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The model's weights are converted to it."""
    weights: Literal["dtype", "int8"] = "dtype"
    """int8 scores the model that generate runs with weights=int8."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that torch finds, and the CPU without one."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {self.window}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        check_weights(self.weights, self.dtype)


@dataclass(frozen=True, slots=True)
class ExitScore:
    """What one exit makes of the texts."""

    exit: int
    loss: float
    """Mean over the tokens of minus the log of the probability that the exit gave them."""
    agreement: float
    """Share of positions whose likeliest token is the last exit's: greedy acceptance of a draft."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """Return e to the loss; infinite where that is beyond floats."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def perplexity(config: PerplexityConfig, loaded: Loaded, out: TextIO) -> None:
    """Score the texts at every exit, and write a line for each.

    Raises:
        ValueError: if the file holds no text, or the window does not fit the model.
    """
    context = loaded.config.max_position_embeddings
    window = context if config.window is None else config.window
    if window > context:
        raise ValueError(f"window={window}, but the model's context is {context}: lower it")
    texts = [loaded.encode(text) for text in read_texts(config.texts)]
    pieces = list(_pieces(texts, window, config.max_tokens))
    if not pieces:
        raise ValueError(f"texts={config.texts}: no text has two tokens, so there is none to score")
    scores = score(loaded.model, pieces)
    if config.output == "json":
        for each in scores:
            row = {"exit": each.exit, "loss": each.loss, "perplexity": each.perplexity}
            rest = {"agreement": each.agreement, "tokens": each.tokens, "model": loaded.origin}
            out.write(json.dumps(row | rest) + "\n")
        return
    rows = [("exit", "loss", "perplexity", "agreement", "tokens")]
    rows += [
        (str(s.exit), f"{s.loss:.4f}", f"{s.perplexity:.2f}", f"{s.agreement:.3f}", str(s.tokens))
        for s in scores
    ]
    out.writelines(line + "\n" for line in table_lines(rows))


def read_texts(name: str) -> list[str]:
    """Return the text of a file, or those of its JSON lines.

    Raises:
        ValueError: if there is no such file, or no text in it, or a line is not one.
    """
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"texts={name}: there is no such file")
    content = read_text(file)
    if not content.strip():
        raise ValueError(f"texts={name}: the file is empty; write the text to score")
    if file.suffix != ".jsonl":
        return [content]
    lines = enumerate(content.splitlines(), 1)
    return [_text_of(line, f"{name}, line {number}") for number, line in lines if line.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{where} is not an object such as {{"text": "some text"}}')
    return text


def _pieces(texts: Sequence[list[int]], window: int, most: int) -> Iterator[list[int]]:
    """Yield pieces of at most `window` tokens with `most` scored tokens in all."""
    for ids in texts:
        for start in range(0, len(ids), window):
            piece = ids[start : start + min(window, most + 1)]
            if len(piece) < 2:
                continue
            yield piece
            most -= len(piece) - 1
            if most <= 0:
                return


@torch.inference_mode()
def score(model: Llama, pieces: Sequence[Sequence[int]]) -> list[ExitScore]:
    """Return the scores of exits 1 to L over token ids; each piece's first token is not scored."""
    depth, device = model.config.num_hidden_layers, model.model.embed_tokens.weight.device
    exits = range(1, depth + 1)
    sums = torch.zeros(depth, 2, dtype=torch.float64)  # (X, 2): loss, agreements
    for piece in pieces:
        ids = torch.tensor(piece, device=device)  # (S,)
        tokens = make_tokens(model.config, torch.arange(len(piece), device=device)[None])
        hiddens = model(ids[None], tokens, full(depth, exits=exits))
        for start in range(0, len(piece) - 1, POSITIONS_AT_ONCE):
            part = slice(start, min(start + POSITIONS_AT_ONCE, len(piece) - 1))
            states = [hiddens[e][0, part] for e in exits]
            sums += _sums(model, states, ids[1:][part]).cpu()
    scored = sum(len(piece) - 1 for piece in pieces)
    means = (sums / scored).tolist()
    return [ExitScore(e, loss, same, scored) for e, (loss, same) in zip(exits, means, strict=True)]


def _sums(model: Llama, states: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the summed loss and agreements (X, 2) of exits' states, each (S, D)."""
    best = model.unembed(states[-1]).argmax(-1)  # (S,)
    rows = []
    for state in states:
        logits = model.unembed(state)  # (S, V)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(precise, targets, reduction="sum").double()
        rows.append(torch.stack((loss, (logits.argmax(-1) == best).sum().double())))
    return torch.stack(rows)
