"""The model card as text, from facts alone: the hub's front matter, then Markdown."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from inference.card.decoding import decoding_section, promising
from inference.card.facts import Facts, RunFacts
from inference.card.recipe import (
    code,
    data_notes,
    duration,
    hub_datasets,
    recipe_rows,
    section,
    shown,
    source_rows,
)
from models.flops import num_parameters

PAPER = "LayerSkip, [arXiv 2404.16710](https://arxiv.org/abs/2404.16710)"
TOKENS_OF_A_PARAMETER = 20
"""What a model from scratch is best trained on (Hoffmann et al. 2022, arXiv 2203.15556)."""


def card_text(facts: Facts) -> str:
    """Return the card of an exported model."""
    parts = [
        f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.folder.rstrip('/').rsplit('/', 1)[-1]}",
        _what_it_is(facts),
        *_sections(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """Return the front matter, in the hub's words."""
    recipe = {} if facts.run is None else facts.run.config
    tags = ["llama"]
    if section(recipe, "layer_dropout") or section(recipe, "exit_loss"):
        tags.append("layerskip")
    if section(recipe, "exit_loss"):
        tags += ["early-exit", "self-speculative"]
    if facts.is_adapter:
        tags.append("lora")
    values = {
        "license": facts.license,
        "library_name": "peft" if facts.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": facts.base_model,
        "datasets": [] if facts.run is None else hub_datasets(facts.run),
        "tags": tags,
    }
    return {name: value for name, value in values.items() if value}


def _what_it_is(facts: Facts) -> str:
    model = facts.model
    size = (
        f"{num_parameters(model):,} parameters: {model.num_hidden_layers} layers of width "
        f"{model.hidden_size}, {model.vocab_size:,} tokens, {model.max_position_embeddings:,} "
        "positions"
    )
    begin = "LoRA adapters for a Llama of" if facts.is_adapter else "A Llama of"
    text = f"{begin} {size}; stored in {facts.dtype}."
    if facts.run is None:
        return f"{text} Made from {code(facts.source)}; how that was trained is not known here."
    recipe = facts.run.config
    if section(recipe, "exit_loss"):
        text += (
            f" Trained to be read at its lower layers, too ({PAPER}): the first layers can draft "
            "what all layers then verify, so that the text is that of the whole model, sooner."
        )
    return text


def _sections(facts: Facts) -> Iterator[str]:
    run = facts.run
    if not facts.is_adapter:
        validation = None if run is None else run.validation
        yield decoding_section(facts.folder, facts.tuned, validation)
    yield _use(facts)
    if run is not None:
        yield _exits(run)
        yield _table("## Recipe", ("", ""), recipe_rows(run))
        yield _data(run)
    yield "\n".join(("## Limits", "", *(f"- {line}" for line in limits(facts))))


def _table(title: str, head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join((title, "", *(f"| {' | '.join(row)} |" for row in lines)))


def _data(run: RunFacts) -> str:
    rows, notes = source_rows(run), "\n".join(data_notes(run))
    text = _table("## Data", ("source", "a row is", "share"), rows) if rows else "## Data"
    return f"{text}\n\n{notes}" if rows or notes else ""


def _exits(run: RunFacts) -> str:
    found = run.validation
    if found is None or not found.exits:
        return ""
    rows = [
        (
            str(x.exit_layer),
            f"{x.loss:.3f}",
            f"{x.perplexity:.4g}",
            "" if x.agreement is None else f"{x.agreement:.1%}",
        )
        for x in found.exits
    ]
    on = "" if found.tokens is None else f" on {found.tokens:,} tokens"
    when = f"Validated after step {found.step:,}{on} that were held out of the data below."
    if found.step < run.step:
        when += f" The weights here are those after step {run.step:,}."
    table = _table(f"## Exits\n\n{when}", ("exit", "loss", "perplexity", "agreement"), rows)
    return (
        f"{table}\n\nExit e has run e layers; loss is in nats a token; agreement is the share of "
        "positions at which the exit's likeliest token is the last layer's."
    )


def _use(facts: Facts) -> str:
    lines = _load_adapters(facts) if facts.is_adapter else _load(facts)
    text = "\n".join(("## In transformers", "", *_python(*lines)))
    setting = None if facts.is_adapter else drafting(facts)
    if setting is None:
        return text
    exit_layer, length = setting
    said = (
        "Its own drafting with an early exit works, too. It shares the weights, but neither the "
        "cache nor what the draft has computed, so it gains less:"
    )
    lines = [
        f"model.generation_config.num_assistant_tokens = {length}",
        "drafted = model.generate(",
        f"    **prompt, max_new_tokens=20, do_sample=False, assistant_early_exit={exit_layer}",
        ")",
        "print(tokenizer.decode(drafted[0]))",
    ]
    return "\n".join((text, "", said, "", *_python(*lines)))


def _python(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]


def _load(facts: Facts) -> list[str]:
    folder = json.dumps(facts.folder, ensure_ascii=False)
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({folder})",
        f"model = AutoModelForCausalLM.from_pretrained({folder})",
        'prompt = tokenizer("The", return_tensors="pt", return_token_type_ids=False)',
        "tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)",
        "print(tokenizer.decode(tokens[0]))",
    ]


def _load_adapters(facts: Facts) -> list[str]:
    start = "BASE" if facts.run is None else str(facts.run.config.get("init_from"))
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(shown(start))})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(facts.folder, ensure_ascii=False)})",
    ]


def drafting(facts: Facts) -> tuple[int, int] | None:
    """Return exit and draft length to show: as tuned, as promised, a quarter of a trained depth."""
    tuned, run = facts.tuned, facts.run
    if tuned is not None and tuned.is_plain:
        return None
    if tuned is not None and tuned.exit_layer is not None and tuned.num_speculations is not None:
        return tuned.exit_layer, tuned.num_speculations
    if run is None or not section(run.config, "exit_loss") or facts.model.num_hidden_layers < 2:
        return None
    guess = promising(run.validation)
    return (max(1, facts.model.num_hidden_layers // 4), 4) if guess is None else guess[0]


def limits(facts: Facts) -> Iterator[str]:
    """Yield what to know before one relies on the model."""
    run = facts.run
    if run is not None:
        yield from _trained_for(facts, run)
    if run is None or not section(run.config, "exit_loss"):
        known = (
            "Nothing is known here of its exits" if run is None else "Its exits were not trained"
        )
        yield f"{known}: drafting with them may be slower than plain decoding."
    else:
        yield "What an exit says unverified is worse than the model's text; see the exits."
    if run is not None and run.validation is not None:
        yield "All figures are of text like that of training; none says anything of other text."
    yield "No benchmark of knowledge, safety or bias has been run for this card."


def _trained_for(facts: Facts, run: RunFacts) -> Iterator[str]:
    if run.tokens is None:
        return
    fresh, parameters = run.config.get("init_from") is None, num_parameters(facts.model)
    span = "" if run.seconds is None else f" in {duration(run.seconds)}"
    if fresh and run.tokens < TOKENS_OF_A_PARAMETER * parameters:
        yield (
            f"It has seen {run.tokens:,} tokens{span}, {run.tokens / parameters:.2g} for each of "
            f"its parameters; about {TOKENS_OF_A_PARAMETER} are usual "
            "([arXiv 2203.15556](https://arxiv.org/abs/2203.15556)): it shows the way, not good "
            "text."
        )
    if not fresh:
        yield f"It was trained for {run.tokens:,} tokens{span} from where its base was."
    total = run.config.get("steps")
    if isinstance(total, int) and run.step < total:
        yield f"The run was not at its end: these are its weights after {run.step:,} steps."
