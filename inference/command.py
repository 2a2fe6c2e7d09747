"""What `generate` does with a loaded model: every prompt, then the comparison."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TextIO

from inference.adaptive import adaptive
from inference.batch import BatchSettings, generate_batch
from inference.bench import Comparison, compare
from inference.config import GenerateConfig
from inference.controller import Controller
from inference.decoding_plan import split
from inference.early_exit import check_exit, early_exit
from inference.generate import autoregressive
from inference.generation import Decode, Generation, Settings
from inference.load import Loaded
from inference.prompt_sets.encode import prompt_ids
from inference.prompt_sets.prompt import sample
from inference.prompt_sets.read import read_prompt_set
from inference.ranks import generate_dealt
from inference.report import comparison_figures, comparison_table, figures, one_line
from inference.self_speculative import self_speculative
from inference.stop import StopStrings
from inference.stream import TextStream, show, text_of
from inference.workspace import check_prompt
from models.plan import full
from parallel.share import share_numbers
from parallel.together import together
from parallel.world import World


def generate(
    config: GenerateConfig,
    loaded: Loaded,
    out: TextIO,
    notes: TextIO,
    world: World | None = None,
) -> None:
    """Continue every prompt; text or JSON goes to `out`, figures beside text to `notes`.

    With ranks=data the prompts are dealt over the ranks of `world`, and rank 0 writes them all.

    Raises:
        ValueError: if a prompt or setting does not fit the model.
    """
    prompts = [prompt_ids(loaded, text, chat=config.chat) for text in read_prompts(config)]
    for ids in prompts:
        check_prompt(loaded.config, ids, config.max_new_tokens)
    decode = make_decode(config, loaded)
    if config.ranks == "data":
        assert world is not None, "ranks=data is refused without ranks"
        batch, settings = _batch(config), decode_settings(config, loaded)
        dealt = generate_dealt(loaded.model, prompts, batch=batch, settings=settings, world=world)
        write = partial(_write_json, config, loaded, prompts, dealt, out)
        together(write, "writing the results")
        return
    if config.output == "text":
        for ids in prompts:
            _print_text(config, loaded, decode, ids, out, notes)
        if config.compare:
            measured = _compare(config, loaded, decode, prompts)
            table = comparison_table(measured, label(config), is_greedy=config.temperature == 0)
            out.write("\n" + table)
        return
    done = decode_all(config, loaded, decode, prompts)
    measure = partial(_compare, config, loaded, decode, prompts) if config.compare else None
    _write_json(config, loaded, prompts, done, out, measure)


def _write_json(
    config: GenerateConfig,
    loaded: Loaded,
    prompts: list[list[int]],
    generations: Iterable[Generation],
    out: TextIO,
    measure: Callable[[], Comparison] | None = None,
) -> None:
    """Write an object a line for each generation; what is measured at the end goes to the last."""
    for index, generation in enumerate(generations):
        values = _json_values(config, loaded, prompts[index], generation)
        if measure is not None and index == len(prompts) - 1:
            values["comparison"] = comparison_figures(
                measure(), config.strategy, is_greedy=config.temperature == 0
            )
        out.write(json.dumps(values) + "\n")
        out.flush()


def decode_all(
    config: GenerateConfig, loaded: Loaded, decode: Decode, prompts: list[list[int]]
) -> Iterator[Generation]:
    """Return the prompts' generations in their order, one after another or in batches.

    `decode` is what the config means for one prompt.
    """
    if config.batch_size == 1:
        return (Generation(tuple(decode(prompt_ids))) for prompt_ids in prompts)
    settings = decode_settings(config, loaded)
    return generate_batch(loaded.model, prompts, batch=_batch(config), settings=settings)


def _batch(config: GenerateConfig) -> BatchSettings:
    drafting = config.strategy == "self_speculative"
    return BatchSettings(
        rows=config.batch_size,
        exit_layer=config.exit_layer,
        num_speculations=config.speculations if drafting else 0,
        is_verified=config.strategy != "early_exit",
    )


def decode_settings(config: GenerateConfig, loaded: Loaded) -> Settings:
    """Return what the decoding loop is told, strings that end a text included."""
    stop = StopStrings(tuple(config.stop), loaded.decode) if config.stop else None
    return replace(config.settings(loaded.eos_ids), stop=stop)


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompt, or those of the file or set.

    Raises:
        ValueError: if there is none, or a line of the file is not one.
        RuntimeError: if the set's hub cannot be reached.
    """
    if config.prompt is not None:
        return [config.prompt]
    if config.prompts is None:
        raise ValueError('there is no prompt: add prompt="some text" or prompts=FILE')
    prompts = read_prompt_set(config.prompts)
    return [each.text for each in sample(prompts, config.num_samples, config.sample_seed)]


def make_decode(config: GenerateConfig, loaded: Loaded) -> Decode:
    """Return the configured way of decoding, everything but the prompt bound.

    Raises:
        ValueError: if the model has no such exit or layer.
    """
    if config.strategy == "autoregressive":
        return oracle(config, loaded)
    model, settings = loaded.model, decode_settings(config, loaded)
    if config.strategy == "adaptive":
        depth, share = loaded.config.num_hidden_layers, partial(share_numbers, model)
        controller = Controller(depth, most=config.speculations, share=share)
        return partial(adaptive, model, controller=controller, settings=settings)
    if config.exit_layer is not None:
        check_exit(model, config.exit_layer)
        if config.strategy == "early_exit":
            return partial(early_exit, model, exit_layer=config.exit_layer, settings=settings)
    draft = config.draft(loaded.config.num_hidden_layers)
    _ = split(loaded.config, draft)  # what is wrong with it should not wait for a prompt
    return partial(
        self_speculative,
        model,
        draft=draft,
        num_speculations=config.speculations,
        draft_confidence=config.draft_confidence,
        settings=settings,
    )


def oracle(config: GenerateConfig, loaded: Loaded) -> Decode:
    """Return plain decoding with the same settings, everything but the prompt bound."""
    plan = full(loaded.config.num_hidden_layers)
    settings = decode_settings(config, loaded)
    return partial(autoregressive, loaded.model, plan=plan, settings=settings)


def _compare(
    config: GenerateConfig, loaded: Loaded, decode: Decode, prompts: list[list[int]]
) -> Comparison:
    return compare(oracle(config, loaded), decode, prompts)


def label(config: GenerateConfig) -> str:
    """Return in a few words what is decoded with."""
    parts = [f"{name} {' '.join(map(str, layers))}" for name, layers in config.skips.items()]
    if config.exit_layer is not None:
        parts = [f"exit {config.exit_layer}"]
    if config.strategy == "self_speculative":
        parts.append(f"{config.speculations} drafts")
    if config.strategy == "adaptive":
        parts.append(f"up to {config.speculations} drafts")
    return ", ".join([config.strategy, *parts])


def _print_text(
    config: GenerateConfig,
    loaded: Loaded,
    decode: Decode,
    prompt_ids: list[int],
    out: TextIO,
    notes: TextIO,
) -> None:
    colour = out.isatty() and not os.environ.get("NO_COLOR")
    stream = TextStream(loaded.decode, prompt_ids, config.stop)
    out.write(loaded.decode(prompt_ids))
    generation = Generation(tuple(show(decode(prompt_ids), stream, out, colour=colour)))
    out.write("\n")
    out.flush()
    notes.write(f"[{one_line(generation)}]\n")


def _json_values(
    config: GenerateConfig, loaded: Loaded, prompt_ids: list[int], generation: Generation
) -> dict[str, Any]:
    drafting = config.strategy in ("self_speculative", "adaptive")
    return {
        "text": text_of(loaded.decode, prompt_ids, generation.token_ids, config.stop),
        **figures(generation),
        "model": loaded.origin,
        "strategy": config.strategy,
        "exit_layer": config.exit_layer,
        "skip_attn": config.skip_attn,
        "skip_ffn": config.skip_ffn,
        "skip_layers": config.skip_layers,
        "num_speculations": config.speculations if drafting else None,
    }
