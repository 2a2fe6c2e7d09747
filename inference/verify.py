"""The certificate: self-speculative decoding held against autoregressive decoding.

What "lossless" means, and what it does not, is in docs/lossless.md.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from inference.command import decode_all, label, make_decode, read_prompts
from inference.divergence import Agreement, compare_tokens
from inference.generation import Decode, Generation
from inference.load import Loaded
from inference.report import table_lines
from inference.two_sample import TwoSample, two_sample
from inference.verify_config import VerifyConfig
from inference.workspace import check_prompt

SIGNIFICANCE = 0.01
"""A right decoder is called at fault in this share of sampled runs, all prompts together."""

Seeded = Callable[[int], Decode]
"""A way of decoding for each seed."""


def verify(config: VerifyConfig, loaded: Loaded, out: TextIO) -> None:
    """Compare both ways of decoding on every prompt, and write what was found to `out`.

    Raises:
        ValueError: if a prompt or setting does not fit the model; nothing has been decoded then.
        RuntimeError: if there is a fault; everything has been written then.
    """
    prompts = [loaded.encode(text) for text in read_prompts(config.plain())]
    for prompt_ids in prompts:
        check_prompt(loaded.config, prompt_ids, config.num_tokens)
    depth = loaded.config.num_hidden_layers
    told = config.drafting(depth)
    other = make_decode(told, loaded)  # what is wrong with it should not wait for a prompt
    if config.is_sampled:
        first = range(config.seed, config.seed + config.num_seeds)
        tests = [
            sampled(
                prompt_ids,
                lambda seed: make_decode(config.plain(seed), loaded),
                lambda seed: make_decode(config.drafting(depth, seed), loaded),
                first,
            )
            for prompt_ids in tqdm(prompts, unit="prompt", disable=None)
        ]
        rows, verdicts = sampled_rows(tests, config.num_seeds)
    else:
        expected = decode_all(config.plain(), loaded, make_decode(config.plain(), loaded), prompts)
        pairs = zip(prompts, expected, decode_all(told, loaded, other, prompts), strict=True)
        found = [
            compare_tokens(loaded.model, prompt_ids, plain.token_ids, drafted.token_ids)
            for prompt_ids, plain, drafted in tqdm(
                pairs, total=len(prompts), unit="prompt", disable=None
            )
        ]
        rows, verdicts = greedy_rows(found), [each.verdict for each in found]
    origin = {
        "model": loaded.origin,
        "strategy": config.strategy,
        "exit_layer": told.exit_layer,
        **told.skips,
        "num_speculations": told.speculations,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
    }
    _write(rows, verdicts, origin, label(told), config, loaded, out)
    refuse_faults(verdicts)


def sampled(prompt_ids: Sequence[int], expected: Seeded, found: Seeded, seeds: range) -> TwoSample:
    """Sample a prompt in both ways and test whether one distribution can have made them.

    The other way's seeds are those after `seeds`: with the same ones the samples would not be
    independent, since both begin with the same random numbers.
    """

    def draws(way: Seeded, those: range) -> list[tuple[int, ...]]:
        return [tuple(Generation(tuple(way(seed)(prompt_ids))).token_ids) for seed in those]

    others = range(seeds.stop, seeds.stop + len(seeds))
    return two_sample(draws(expected, seeds), draws(found, others))


def greedy_rows(found: Sequence[Agreement]) -> list[dict[str, Any]]:
    """Return the figures of each prompt, as JSON values."""
    return [
        {
            "prompt": number,
            "verdict": each.verdict,
            "same_tokens": each.same,
            "position": None if each.verdict == "equal" else each.same,
            "autoregressive": each.expected,
            "self_speculative": each.found,
            "margin": _finite(each.margin),
            "tolerance": _finite(each.tolerance),
        }
        for number, each in enumerate(found, 1)
    ]


def sampled_rows(tests: Sequence[TwoSample], seeds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the figures of each prompt as JSON values, and the verdicts, `same` or `fault`.

    P-values are multiplied by the number of prompts (Bonferroni).
    """
    rows, verdicts = [], []
    for number, test in enumerate(tests, 1):
        p = min(1.0, test.p_value * len(tests))
        verdicts.append("fault" if p < SIGNIFICANCE else "same")
        row = {"prompt": number, "verdict": verdicts[-1], "seeds": seeds, "p_value": p}
        rows.append(row | {"first_tokens": test.length, "cells": test.cells})
    return rows, verdicts


def refuse_faults(verdicts: Sequence[str]) -> None:
    """Say that decoding is not lossless, if it is not.

    Raises:
        RuntimeError: if a verdict is `fault`.
    """
    faults = [number for number, verdict in enumerate(verdicts, 1) if verdict == "fault"]
    if faults:
        raise RuntimeError(
            f"self-speculation is not lossless here: {len(faults)} of {len(verdicts)} prompts are "
            f"at fault, the first is prompt {faults[0]}; docs/lossless.md says what to try"
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write(
    rows: Sequence[dict[str, Any]],
    verdicts: Sequence[str],
    origin: dict[str, Any],
    name: str,
    config: VerifyConfig,
    loaded: Loaded,
    out: TextIO,
) -> None:
    if config.output == "json":
        out.writelines(json.dumps(row | origin) + "\n" for row in rows)
        return
    columns = [each.replace("_", " ") for each in rows[0]]
    cells = [[_cell(name, value, loaded) for name, value in row.items()] for row in rows]
    out.writelines(line + "\n" for line in table_lines([columns, *cells]))
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys([*verdicts, "fault"]))
    out.write(f"prompts: {len(rows)}, {name}, {config.dtype}: {counts}\n")


def _cell(name: str, value: Any, loaded: Loaded) -> str:
    if value is None:
        return "-"
    if name in ("autoregressive", "self_speculative"):
        text = repr(loaded.decode([value])) if value < loaded.tokenizer.vocab_size else "no text"
        return f"{value} {text}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
