"""What every exit would have said, token by token, from one pass over a text.

Letters: S positions, N new tokens, X exits (1..L), L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.perplexity import POSITIONS_AT_ONCE
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens


@torch.inference_mode()
def exit_choices(model: Llama, ids: Sequence[int]) -> Tensor:
    """Return the likeliest next token (X, S) at each position of a text, by each exit 1..L."""
    depth, device = model.config.num_hidden_layers, model.model.embed_tokens.weight.device
    exits = range(1, depth + 1)
    tokens = make_tokens(model.config, torch.arange(len(ids), device=device)[None])
    hiddens = model(torch.tensor([list(ids)], device=device), tokens, full(depth, exits=exits))
    rows = [
        torch.cat(
            [model.unembed(part).argmax(-1) for part in hiddens[e][0].split(POSITIONS_AT_ONCE)]
        )
        for e in exits
    ]
    return torch.stack(rows).cpu()


def agreements(model: Llama, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Tensor:
    """Return whether each exit's likeliest token is the one that came, (X, N), for N new tokens."""
    choices = exit_choices(model, [*prompt_ids, *token_ids][:-1])[:, len(prompt_ids) - 1 :]
    return choices == torch.tensor(list(token_ids))


def earliest_exits(model: Llama, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """Return for each greedily decoded token the first exit whose likeliest token it already is.

    Later exits may think otherwise again. Where none agrees, not even the last (a near-tie that
    fell otherwise in a pass of another length), it is the last, which the token came from.
    """
    same = agreements(model, prompt_ids, token_ids)  # (X, N)
    same[-1] = True
    return (same.int().argmax(0) + 1).tolist()  # the first of the largest
