"""Autoregressive decoding by a plan: with the full plan, the oracle all others are tested against.

Letters: S positions, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch

from inference.decoding_plan import check_plan
from inference.ending import Ending
from inference.generation import Round, Settings
from inference.sample import choose
from inference.workspace import prepare
from models.llama import Llama
from models.plan import LayerPlan
from parallel.share import share


@torch.inference_mode()
def autoregressive(
    model: Llama, prompt_ids: Sequence[int], *, plan: LayerPlan, settings: Settings
) -> Iterator[Round]:
    """Yield one token a round, from a pass of the plan over the token before it.

    With `full(L)` this is plain decoding, with `full(E)` an unverified early exit at E. Tokens come
    from the plan's last exit, and the head sees one position a round.

    Raises:
        ValueError: if the prompt is empty, too long, or not of the model's vocabulary, or the plan
            does not fit the model or the cache.
    """
    started = perf_counter()
    check_plan(model.config, plan)
    work = prepare(model, prompt_ids, settings, [plan])
    ids = torch.tensor([list(prompt_ids)], device=work.device)  # (1, S)
    ending, position, exit_layer = Ending(settings, prompt_ids), 0, plan.exits[-1]
    for _ in range(settings.max_new_tokens):
        work.read(position, ids)
        h = model(ids, work.tokens(position, ids.shape[1]), plan)[exit_layer]  # (1, S, D)
        position += ids.shape[1]
        logits = work.change(model.unembed(h[:, -1]), position)  # (1, V)
        token = share(model, choose(logits, settings.sampling, work.generator)[0])  # (1,)
        ids, number = token[None], int(token)  # the host waits for the device here
        yield Round(ending.add([number]), seconds=perf_counter() - started)
        if ending.is_over:
            return
        started = perf_counter()
