"""What `generate` does with a loaded model: every prompt in turn, then the comparison."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from inference.bench import Comparison, compare
from inference.config import GenerateConfig
from inference.early_exit import check_exit, early_exit
from inference.generate import autoregressive
from inference.generation import Decode, Generation
from inference.load import Loaded
from inference.report import comparison_figures, comparison_table, figures, one_line
from inference.self_speculative import self_speculative
from inference.stream import TextStream, show, text_of
from inference.workspace import check_prompt
from models.plan import full


def generate(config: GenerateConfig, loaded: Loaded, out: TextIO, notes: TextIO) -> None:
    """Continue every prompt; text or JSON goes to `out`, figures beside text to `notes`.

    Raises:
        ValueError: if a prompt or setting does not fit the model.
    """
    prompts = [loaded.encode(text) for text in read_prompts(config)]
    for prompt_ids in prompts:
        check_prompt(loaded.config, prompt_ids, config.max_new_tokens)
    decode = make_decode(config, loaded)
    for index, prompt_ids in enumerate(prompts):
        if config.output == "text":
            _print_text(loaded, decode, prompt_ids, out, notes)
            continue
        values = _json_values(config, loaded, prompt_ids, Generation(tuple(decode(prompt_ids))))
        if config.compare and index == len(prompts) - 1:
            measured = _compare(config, loaded, decode, prompts)
            values["comparison"] = comparison_figures(
                measured, config.strategy, is_greedy=config.temperature == 0
            )
        out.write(json.dumps(values) + "\n")
        out.flush()
    if config.compare and config.output == "text":
        measured = _compare(config, loaded, decode, prompts)
        table = comparison_table(measured, _label(config), is_greedy=config.temperature == 0)
        out.write("\n" + table)


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompt, or those of the file.

    Raises:
        ValueError: if there is none, or a line of the file is not one.
    """
    if config.prompt is not None:
        return [config.prompt]
    if config.prompts is None:
        raise ValueError('there is no prompt: add prompt="some text" or prompts=FILE')
    file = Path(config.prompts)
    if not file.is_file():
        raise ValueError(f"prompts={file}: there is no such file")
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"prompts={file}: the file is empty; write one prompt a line")
    if file.suffix != ".jsonl":
        return lines
    return [_prompt_of(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise ValueError(f'{where} is not an object such as {{"prompt": "some text"}}')
    return prompt


def make_decode(config: GenerateConfig, loaded: Loaded) -> Decode:
    """Return the configured way of decoding, everything but the prompt bound.

    Raises:
        ValueError: if the model has no such exit.
    """
    model, settings = loaded.model, config.settings(loaded.eos_ids)
    if config.exit_layer is None:
        return _oracle(config, loaded)
    check_exit(model, config.exit_layer)
    if config.strategy == "early_exit":
        return partial(early_exit, model, exit_layer=config.exit_layer, settings=settings)
    return partial(
        self_speculative,
        model,
        exit_layer=config.exit_layer,
        num_speculations=config.speculations,
        draft_confidence=config.draft_confidence,
        settings=settings,
    )


def _oracle(config: GenerateConfig, loaded: Loaded) -> Decode:
    plan = full(loaded.config.num_hidden_layers)
    settings = config.settings(loaded.eos_ids)
    return partial(autoregressive, loaded.model, plan=plan, settings=settings)


def _compare(
    config: GenerateConfig, loaded: Loaded, decode: Decode, prompts: list[list[int]]
) -> Comparison:
    return compare(_oracle(config, loaded), decode, prompts)


def _label(config: GenerateConfig) -> str:
    drafts = f", {config.speculations} drafts" if config.strategy == "self_speculative" else ""
    return f"{config.strategy}, exit {config.exit_layer}{drafts}"


def _print_text(
    loaded: Loaded, decode: Decode, prompt_ids: list[int], out: TextIO, notes: TextIO
) -> None:
    colour = out.isatty() and not os.environ.get("NO_COLOR")
    stream = TextStream(loaded.decode, prompt_ids)
    out.write(loaded.decode(prompt_ids))
    generation = Generation(tuple(show(decode(prompt_ids), stream, out, colour=colour)))
    out.write("\n")
    out.flush()
    notes.write(f"[{one_line(generation)}]\n")


def _json_values(
    config: GenerateConfig, loaded: Loaded, prompt_ids: list[int], generation: Generation
) -> dict[str, Any]:
    drafting = config.strategy == "self_speculative"
    return {
        "text": text_of(loaded.decode, prompt_ids, generation.token_ids),
        **figures(generation),
        "model": loaded.origin,
        "strategy": config.strategy,
        "exit_layer": config.exit_layer,
        "num_speculations": config.speculations if drafting else None,
    }
