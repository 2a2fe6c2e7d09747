"""Early exit at a fixed layer: fast, and NOT what the full model would say.

Nothing is verified: the layers above the exit never run, for the prompt neither, so quality is
that of the exit. For the full model's own tokens use `inference.self_speculative`.
"""

from collections.abc import Iterator, Sequence

from inference.generate import autoregressive
from inference.generation import Round, Settings
from models.llama import Llama
from models.plan import full


def early_exit(
    model: Llama, prompt_ids: Sequence[int], *, exit_layer: int, settings: Settings
) -> Iterator[Round]:
    """Return the rounds of decoding by the first `exit_layer` layers, then norm and head.

    Raises:
        ValueError: if the exit is not in 1..L-1, or the prompt does not fit.
    """
    check_exit(model, exit_layer)
    return autoregressive(model, prompt_ids, plan=full(exit_layer), settings=settings)


def check_exit(model: Llama, exit_layer: int) -> None:
    """Refuse an exit that is not strictly inside the model; exit L is autoregressive decoding.

    Raises:
        ValueError: naming the exits that the model has.
    """
    last = model.config.num_hidden_layers - 1
    if not 1 <= exit_layer <= last:
        raise ValueError(
            f"exit_layer must be in 1..{last} for a model of {last + 1} layers, got {exit_layer}; "
            "for the full model use strategy=autoregressive"
        )
