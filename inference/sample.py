"""From logits to tokens: greedy, temperature, top-k, top-p, and speculative acceptance.

Letters: N rows of logits, V vocabulary, d drafted tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Logits whose maximum is found at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen; the default is greedy."""

    temperature: float = 0.0
    """0 takes the likeliest token; otherwise logits are divided by it before sampling."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum; 1 keeps all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.is_greedy and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"top_k={self.top_k} and top_p={self.top_p} would be ignored at temperature=0: "
                "set a temperature, or leave them out"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def in_precision(logits: Tensor) -> Tensor:
    """Return logits (..., V) in the precision that probabilities have: float32, or float64."""
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def distribution(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the probabilities (N, V) that are sampled from, given logits (N, V).

    Temperature, then top-k, then top-p, as transformers applies them. The softmax is in float32,
    or in float64 for float64 logits. Not for greedy decoding.
    """
    scaled = in_precision(logits)
    scaled = (scaled - scaled.amax(-1, keepdim=True)) / sampling.temperature  # cannot overflow
    if 0 < sampling.top_k < scaled.shape[-1]:
        kth = scaled.topk(sampling.top_k).values[..., -1:]  # (N, 1)
        scaled = scaled.masked_fill(scaled < kth, float("-inf"))
    p = scaled.softmax(-1)  # (N, V)
    if sampling.top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # what likelier tokens hold; 0 for the first
        kept = ordered.masked_fill(before >= sampling.top_p, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, kept / kept.sum(-1, keepdim=True))
    return p


def likeliest(logits: Tensor) -> Tensor:
    """Return the index (...) of the greatest of logits (..., V), the first of several.

    The CPU looks for an index one by one, but for a maximum many at once: so for the place of the
    maximum among the maxima of blocks, then within that block.
    """
    if logits.device.type != "cpu" or logits.shape[-1] % BLOCK or not logits.numel():
        return logits.argmax(-1)
    blocks = logits.reshape(*logits.shape[:-1], -1, BLOCK)  # (..., V / 256, 256)
    block = blocks.amax(-1).argmax(-1, keepdim=True)  # (..., 1)
    found = blocks.take_along_dim(block[..., None], dim=-2).squeeze(-2)  # (..., 256)
    return block.squeeze(-1) * BLOCK + found.argmax(-1)


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return one index (N,) for each row of unnormalised probabilities (N, V); see `pick`."""
    shape = (*weights.shape[:-1], 1)
    uniform = torch.rand(shape, dtype=torch.float64, device=weights.device, generator=generator)
    return pick(weights, uniform)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the index (N,) that a random number in [0, 1) (N, 1) means in each row of (N, V).

    By inverting the cumulative sum in float64: exact for vocabularies of any size, and an item of
    weight zero is never drawn.
    """
    cumulative = weights.double().cumsum(-1)  # (N, V)
    index = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)  # (N, 1)
    return index.squeeze(-1).clamp(max=weights.shape[-1] - 1)


def choose(
    logits: Tensor, sampling: SamplingConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return tokens (N,) for logits (N, V), and the probabilities (N, V) they were drawn from.

    Greedy choices have no probabilities: None.
    """
    if sampling.is_greedy:
        return likeliest(logits), None
    p = distribution(logits, sampling)
    return draw(p, generator), p


def accept(
    logits: Tensor,
    drafts: list[Tensor],
    draft_p: list[Tensor],
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> tuple[list[int], list[int], Tensor]:
    """Compare drafts with the verifier; what is kept is distributed as the verifier's own tokens.

    Speculative sampling (arXiv 2211.17192, algorithm 1): draft i is kept with probability
    min(1, p_i / q_i); at the first rejection a token is drawn from normalise(max(0, p_i - q_i));
    when all are kept, a bonus token is drawn from the processed p_d. Greedily that is: keep the
    drafts that are the verifier's argmax, then take its next one.

    Args:
        logits: (d + 1, V) the verifier's, at the positions that predict each draft, and after.
        drafts: d tensors (1,).
        draft_p: d tensors (1, V), the processed q of each draft; empty when greedy.
        sampling: the same for draft and verifier.
        generator: source of randomness, on the device of the logits.

    Returns:
        The kept drafts followed by one token of the verifier; all drafts; and that last token as
        a tensor (1,). The host waits for the device here, once.
    """
    if sampling.is_greedy:
        choices = likeliest(logits)  # (d + 1,)
        numbers = torch.cat((*drafts, choices)).tolist()
        drafted, chosen = numbers[: len(drafts)], numbers[len(drafts) :]
        kept = 0
        while kept < len(drafted) and drafted[kept] == chosen[kept]:
            kept += 1
        return chosen[: kept + 1], drafted, choices[kept : kept + 1]
    num_kept, token = _speculate(distribution(logits, sampling), drafts, draft_p, generator)
    kept, last, *drafted = torch.cat((num_kept, token, *drafts)).tolist()
    return [*drafted[:kept], last], drafted, token


def _speculate(
    p: Tensor, drafts: list[Tensor], draft_p: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return how many drafts are kept (1,) and the token after them (1,), given p (d + 1, V)."""
    # Beyond the last draft q is 0, so that the bonus token's "residual" is p itself.
    q = torch.cat((*draft_p, torch.zeros_like(p[:1])))  # (d + 1, V)
    token = torch.cat((*drafts, drafts[0].new_zeros(1) if drafts else p.new_zeros(1).long()))
    p_token, q_token = (x.gather(1, token[:, None])[:-1, 0] for x in (p, q))  # (d,)
    uniform = torch.rand(len(drafts), dtype=p.dtype, device=p.device, generator=generator)
    num_kept = (uniform * q_token < p_token).cumprod(0).sum(0, keepdim=True)  # (1,)
    p_next, q_next = p.index_select(0, num_kept), q.index_select(0, num_kept)  # (1, V)
    residual = (p_next - q_next).clamp(min=0)
    # A rejection implies that some p exceeds q, but for rounding, when the two are equal.
    weights = torch.where(residual.sum() > 0, residual, p_next)
    return num_kept, draw(weights, generator)
