"""Everything that is measured of one checkpoint, as JSON values."""

from collections.abc import Mapping, Sequence
from typing import Any

from inference.early_exit import check_exit
from inference.evaluate.harness import evaluate
from inference.fast.convert import quicken
from inference.follow.config import FollowConfig
from inference.generation import Generation
from inference.load import Loaded
from inference.measure.figures import acceptance, speed, speedup
from inference.measure.intervals import Interval
from inference.measure.ways import Measured, Way, measure, ways_of
from inference.opening import device_name, device_of
from inference.prompt_sets.encode import encode_sample
from inference.prompt_sets.prompt import Prompt
from inference.stream import TextStream, text_of
from models.config import LlamaConfig
from models.speculation import expected_speedup

MOST_TEXTS = 4
"""Texts of so many prompts, the first ones, are kept."""
OPEN, CLOSE = "«", "»"
"""Around the accepted drafts of a round."""
Found = dict[int, dict[str, Any]]
"""What there is to say, by exit."""


def evaluate_checkpoint(
    config: FollowConfig, loaded: Loaded, prompts: Sequence[Prompt], manager: Any
) -> dict[str, Any]:
    """Return figures and texts by exit; the model is in its inference form afterwards.

    Args:
        config: what is wanted.
        loaded: the model, as it was trained.
        prompts: to continue; may be none.
        manager: lm-eval's TaskManager; None: no tasks.

    Raises:
        ValueError: if an exit, a prompt or a task does not fit the model.
        RuntimeError: if a task's data cannot be had.
    """
    depth = loaded.config.num_hidden_layers
    for e in config.exits:
        if e != depth:
            check_exit(loaded.model, e)
    found: Found = {e: {} for e in config.exits}
    if manager is not None:
        for e in config.exits:
            found[e]["tasks"] = _tasks(config, None if e == depth else e, loaded, manager)
    if prompts:
        for e, values in _continue(config, loaded, prompts).items():
            found.setdefault(e, {}).update(values)
    return {
        "checkpoint": loaded.origin,
        "dtype": config.dtype,
        "device": device_name(device_of(loaded)),
        "exits": {str(e): found[e] for e in sorted(found)},
    }


def _tasks(
    config: FollowConfig, exit_layer: int | None, loaded: Loaded, manager: Any
) -> dict[str, dict[str, float]]:
    """Return by task and metric the value, as `acc`, or `acc,FILTER` where there are filters."""
    results = evaluate(config.questions(exit_layer), loaded, manager)["results"]
    return {task: _numbers(values) for task, values in results.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    named = {name.removesuffix(",none"): value for name, value in values.items() if "," in name}
    return {name: float(v) for name, v in named.items() if isinstance(v, float | int)}


def _continue(config: FollowConfig, loaded: Loaded, prompts: Sequence[Prompt]) -> Found:
    """Decode the prompts plainly, and drafted for and alone by each exit."""
    samples = encode_sample(
        loaded,
        prompts,
        count=config.num_samples,
        seed=0,
        max_new_tokens=config.max_new_tokens,
        max_prompt_tokens=None,
    )
    quicken(loaded.model)
    depth = loaded.config.num_hidden_layers
    earlier = [e for e in config.exits if e < depth]
    ways = [_way(config, loaded, "self_speculative", e) for e in earlier]
    plain = _way(config, loaded, "autoregressive", None)
    base, *drafting = measure([plain, *ways], samples.ids, loaded, repeats=config.repeats)
    shown = samples.ids[:MOST_TEXTS]
    found: Found = {depth: _speed(base) | {"prompts": [loaded.decode(ids) for ids in shown]}}
    found[depth]["texts"] = _texts(loaded, shown, base.generations)
    for e, measured in zip(earlier, drafting, strict=True):
        alone = list(_way(config, loaded, "early_exit", e).run(shown))
        found[e] = _speed(measured) | _drafting(measured, base, loaded.config, e)
        found[e]["texts"] = _texts(loaded, shown, alone)
        found[e]["drafted_texts"] = _texts(loaded, shown, measured.generations, mark=True)
    return found


def _way(config: FollowConfig, loaded: Loaded, strategy: str, exit_layer: int | None) -> Way:
    return ways_of(config.decoding(strategy, exit_layer), loaded, compare=False)[0]


def _speed(measured: Measured) -> dict[str, Any]:
    return {
        "tokens": sum(len(each.token_ids) for each in measured.generations),
        "tokens_per_second": _value(speed(measured)),
    }


def _drafting(
    measured: Measured, base: Measured, config: LlamaConfig, exit_layer: int
) -> dict[str, Any]:
    """Return how an exit drafts: measured, and what its acceptance should give by the formula."""
    rounds = [each for generation in measured.generations for each in generation.rounds]
    pairs = zip(measured.generations, base.generations, strict=True)
    return {
        "acceptance": _value(acceptance(measured.generations)),
        "speedup": _value(speedup(measured, base)),
        "expected_speedup": expected_speedup(
            config,
            exit_layer,
            rounds=len(rounds),
            drafted=sum(each.drafted for each in rounds),
            accepted=sum(each.accepted for each in rounds),
        ),
        "same_output": all(ours.token_ids == plain.token_ids for ours, plain in pairs),
    }


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _texts(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    generations: Sequence[Generation],
    *,
    mark: bool = False,
) -> list[str]:
    """Return the first texts; a hardly trained model may choose ids that are none."""
    texts = []
    for ids, generation in zip(prompts, generations, strict=False):
        try:
            write = _marked if mark else _text
            texts.append(write(loaded, ids, generation))
        except ValueError as error:
            texts.append(f"[no text: {error}]")
    return texts


def _text(loaded: Loaded, ids: Sequence[int], generation: Generation) -> str:
    return text_of(loaded.decode, ids, generation.token_ids)


def _marked(loaded: Loaded, ids: Sequence[int], generation: Generation) -> str:
    """Return the text with the accepted drafts of each round between marks."""
    stream, parts = TextStream(loaded.decode, ids), list[str]()
    for each in generation.rounds:
        drafts = stream.add(each.tokens[: each.accepted])
        parts += [OPEN, drafts, CLOSE] if drafts else []
        parts.append(stream.add(each.tokens[each.accepted :]))
    return "".join([*parts, stream.finish()])
