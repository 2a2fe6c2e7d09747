"""Decode the same prompts both ways, timed side by side."""

from collections.abc import Iterator, Sequence
from functools import partial

from tqdm import tqdm

from inference.bench import Comparison, compare
from inference.generate import autoregressive
from inference.generation import Decode, Round, Settings
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import LayerPlan, full


def decode_both_ways(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    draft: LayerPlan,
    num_speculations: int,
    settings: Settings,
    repeats: int,
) -> Comparison:
    """Return autoregressive decoding as baseline and self-speculation as candidate, with a bar.

    Raises:
        ValueError: if the plan is no draft for the model, or a prompt does not fit the context.
    """
    plain = partial(
        autoregressive, model, plan=full(model.config.num_hidden_layers), settings=settings
    )
    speculative = partial(
        self_speculative,
        model,
        draft=draft,
        num_speculations=num_speculations,
        settings=settings,
    )
    generations = 2 * (1 + repeats * len(prompts))  # one warm-up each
    with tqdm(
        total=generations, unit="prompt", desc="decoding", dynamic_ncols=True, disable=None
    ) as bar:  # disable=None: only a terminal gets a bar
        return compare(_counted(plain, bar), _counted(speculative, bar), prompts, repeats=repeats)


def _counted(decode: Decode, bar: "tqdm[None]") -> Decode:
    """Move the bar once for each prompt, while no clock is running."""

    def counting(prompt: Sequence[int]) -> Iterator[Round]:
        yield from decode(prompt)
        bar.update()

    return counting
