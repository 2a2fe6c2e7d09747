"""The command `tune`: a short search for the fastest settings, which `generate` then uses."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from inference.card.decoding import update_card
from inference.command import label, make_decode
from inference.config import GenerateConfig
from inference.early_exit import check_exit
from inference.exits.choices import agreements
from inference.generation import Generation
from inference.identity import Identity, identify
from inference.load import Loaded
from inference.measure.ways import measure, ways_of
from inference.opening import Open, device_name, device_of
from inference.parse import parse_with_decoding
from inference.prompt_sets.encode import Samples, encode_sample
from inference.prompt_sets.prompt import Prompt
from inference.prompt_sets.read import read_prompt_set
from inference.report import table_lines
from inference.sweep.cell import Cell, cell, drafting, plain, settings_text
from inference.sweep.command import check_decoding
from inference.sweep.config import default_exits
from inference.sweep.halving import FIRST_PROMPTS, Rung, Setting, candidates, halve
from inference.sweep.tune_config import DEFAULT_TOKENS, TuneConfig
from inference.tuned import KEYS, read_tuned, tuned_file, write_tuned

logger = logging.getLogger(__name__)

FINAL_REPEATS = 3


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Search for what the command line describes, and write it.

    Raises:
        ValueError: if a key, prompt or setting does not fit; nothing has been decoded then.
    """
    config, decoding = parse_tune(overrides)
    path = tuned_file(model) if config.to is None else Path(config.to)
    if path is None:
        raise ValueError(f"{model} is no folder to write into: name a file, to=FILE.json")
    prompts = read_prompt_set(config.prompts)
    loaded = open_model(model, decoding)
    identity = identify(model, dtype=decoding.precision, device=device_name(device_of(loaded)))
    tune(config, decoding, prompts, loaded, identity, path, sys.stdout)
    card = None if config.to is not None else update_card(path.parent, read_tuned(path))
    if card is not None:
        sys.stdout.write(f"{card} brought up to date\n")


def parse_tune(overrides: Sequence[str]) -> tuple[TuneConfig, GenerateConfig]:
    """Return among what to search, and how to decode otherwise.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    implied = list[str]()
    if not any(each.startswith("max_new_tokens=") for each in overrides):
        implied.append(f"max_new_tokens={DEFAULT_TOKENS}")
    config, decoding = parse_with_decoding(TuneConfig, overrides, implied=implied)
    check_decoding(decoding)
    return config, decoding


def tune(
    config: TuneConfig,
    decoding: GenerateConfig,
    prompts: Sequence[Prompt],
    loaded: Loaded,
    identity: Identity,
    path: Path,
    out: TextIO,
) -> None:
    """Search, write the best settings to a file, and say what was found.

    Self-speculation is chosen only if the whole interval of its speedup is above 1.

    Raises:
        ValueError: if a prompt or setting does not fit the model; nothing is written then.
    """
    exits = config.exit_layer or default_exits(loaded.config.num_hidden_layers)
    for exit_layer in exits:
        check_exit(loaded.model, exit_layer)
    samples = encode_sample(
        loaded,
        prompts,
        count=config.num_samples,
        seed=config.sample_seed,
        max_new_tokens=decoding.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        chat=decoding.chat,
    )
    promising = _promising(exits, config.num_speculations, decoding, samples, loaded)
    rungs = halve(promising, partial(_speedups, decoding, samples, loaded), len(samples.ids))
    best = max(rungs[-1].speedups, key=lambda setting: rungs[-1].speedups[setting])
    winner, final = _final(best, decoding, samples, loaded)
    out.writelines(line + "\n" for line in table_lines(_table(rungs)))
    content = _content(winner, final, config, samples, identity)
    write_tuned(path, content)
    gain = final.speedup
    measured = f"{gain.value:.2f}x ({gain.low:.2f}-{gain.high:.2f}) on {len(samples.ids)} prompts"
    setting = f"{label(winner)}: {measured}"
    if content["decoding"]["strategy"] == "autoregressive":
        setting = f"plain decoding is best here; next is {setting}"
    out.write(f"{setting}\nwritten to {path}\n")


def _promising(
    exits: Sequence[int],
    lengths: Sequence[int],
    decoding: GenerateConfig,
    samples: Samples,
    loaded: Loaded,
) -> list[Setting]:
    """Return the settings worth measuring, by how exits agree with a few plain generations."""
    full_model = make_decode(decoding, loaded)
    some = samples.ids[:FIRST_PROMPTS]
    _ = tuple(full_model(some[0]))  # the first one is slow
    texts = [Generation(tuple(full_model(ids))) for ids in some]
    same = [
        agreements(loaded.model, ids, each.token_ids) for ids, each in zip(some, texts, strict=True)
    ]
    total = sum(each.shape[1] for each in same)
    acceptance = {e: sum(int(each[e - 1].sum()) for each in same) / total for e in exits}
    base = _seconds_per_token(texts)
    costs = {}
    for e in exits:
        shallow = make_decode(replace(decoding, strategy="early_exit", exit_layer=e), loaded)
        costs[e] = _seconds_per_token([Generation(tuple(shallow(some[0])))]) / base
        logger.info("exit %d: agrees with %.0f%% of tokens", e, 100 * acceptance[e])
    return candidates(acceptance, costs, lengths)


def _seconds_per_token(generations: Sequence[Generation]) -> float:
    tokens = sum(each.num_decoded for each in generations)
    if not tokens:
        raise RuntimeError(
            "a prompt ended with its first token, so there is no rate to compare: add "
            "stop_at_eos=false"
        )
    return sum(each.seconds_decode for each in generations) / tokens


def _speedups(
    decoding: GenerateConfig,
    samples: Samples,
    loaded: Loaded,
    settings: Sequence[Setting],
    prompts: int,
) -> Mapping[Setting, float]:
    logger.info("%d settings on %d prompts", len(settings), prompts)
    some = Samples(samples.prompts[:prompts], samples.ids[:prompts])
    configs = [drafting(decoding, e, k) for e, k in settings]
    cells = _measured(configs, decoding, some, loaded, 1)
    return {key: each.speedup.value for key, each in zip(settings, cells, strict=True)}


def _final(
    best: Setting, decoding: GenerateConfig, samples: Samples, loaded: Loaded
) -> tuple[GenerateConfig, Cell]:
    """Return the faster of the best fixed setting and, unless in batches, adaptive decoding."""
    configs = [drafting(decoding, *best)]
    if decoding.batch_size == 1:
        configs.append(replace(decoding, strategy="adaptive"))
    cells = _measured(configs, decoding, samples, loaded, FINAL_REPEATS)
    return max(zip(configs, cells, strict=True), key=lambda pair: pair[1].speedup.value)


def _measured(
    configs: Sequence[GenerateConfig],
    decoding: GenerateConfig,
    samples: Samples,
    loaded: Loaded,
    repeats: int,
) -> list[Cell]:
    """Measure all ways of drafting and one plain decoding, in turn."""
    ways = [ways_of(each, loaded, compare=False)[0] for each in (decoding, *configs)]
    base, *found = measure(ways, samples.ids, loaded, repeats=repeats)
    return [cell(each, base, ours) for each, ours in zip(configs, found, strict=True)]


def _table(rungs: Sequence[Rung]) -> list[list[str]]:
    head = ["exit", "drafts", *(f"on {rung.prompts} prompts" for rung in rungs)]
    settings = sorted(rungs[0].speedups)
    return [head] + [
        [str(e), str(k)]
        + [f"{r.speedups[e, k]:.2f}x" if (e, k) in r.speedups else "" for r in rungs]
        for e, k in settings
    ]


def _content(
    winner: GenerateConfig, final: Cell, config: TuneConfig, samples: Samples, identity: Identity
) -> dict[str, Any]:
    settings: dict[str, Any] = {"strategy": "autoregressive"}
    if final.speedup.low > 1:
        values = {name: getattr(winner, name) for name in KEYS}
        settings = {name: value for name, value in values.items() if value is not None}
    return {
        "decoding": settings,
        "identity": asdict(identity),
        "measured": {"strategy": winner.strategy, **asdict(final)},
        "prompts": config.prompts,
        "num_prompts": len(samples.ids),
        "settings": settings_text(plain(winner), FINAL_REPEATS),
    }
