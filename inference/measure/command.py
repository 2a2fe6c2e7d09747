"""The command `bench`: one way of decoding, and plain decoding beside it, on a set of prompts."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from inference.config import GenerateConfig
from inference.load import Loaded
from inference.measure.config import BenchConfig
from inference.measure.figures import figures, speedup
from inference.measure.report import bench_table
from inference.measure.text import text_figures
from inference.measure.ways import BASELINE, Measured, measure, ways_of
from inference.opening import Open, device_name, device_of
from inference.parse import parse_with_decoding
from inference.pictures.acceptance import save_acceptance
from inference.prompt_sets.encode import Samples, encode_sample
from inference.prompt_sets.prompt import Prompt
from inference.prompt_sets.read import read_prompt_set
from inference.stream import text_of


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Measure what the command line describes.

    Raises:
        ValueError: if a key, prompt or setting does not fit; nothing has been decoded then.
    """
    config, decoding = parse_bench(overrides)
    prompts = read_prompt_set(config.prompts)
    bench(config, decoding, prompts, open_model(model, decoding), sys.stdout)


def parse_bench(overrides: Sequence[str]) -> tuple[BenchConfig, GenerateConfig]:
    """Return what to measure, and how to decode.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    config, decoding = parse_with_decoding(BenchConfig, overrides)
    if config.picture is not None and decoding.strategy not in ("self_speculative", "adaptive"):
        raise ValueError(
            f"picture={config.picture} would be empty with strategy={decoding.strategy}: nothing "
            "is drafted; choose strategy=self_speculative"
        )
    return config, decoding


def bench(
    config: BenchConfig,
    decoding: GenerateConfig,
    prompts: Sequence[Prompt],
    loaded: Loaded,
    out: TextIO,
) -> None:
    """Measure on a sample of the prompts, and write what was found to `out`.

    Raises:
        ValueError: if a prompt or setting does not fit the model; nothing has been decoded then.
    """
    samples = encode_sample(
        loaded,
        prompts,
        count=config.num_samples,
        seed=config.sample_seed,
        max_new_tokens=decoding.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        chat=decoding.chat,
    )
    ways = ways_of(decoding, loaded, compare=config.compare)
    measured = measure(ways, samples.ids, loaded, repeats=config.repeats)
    columns = {
        each.way.name: column(each, measured[0], samples, decoding, loaded) for each in measured
    }
    same = is_same_output(measured) if decoding.temperature == 0 else None
    origin = _origin(config, decoding, samples, loaded)
    if config.output == "json":
        out.write(json.dumps(origin | {"same_output": same, "ways": columns}) + "\n")
    else:
        _write_table(columns, same, origin, out)
    if config.picture is not None:
        save_acceptance(
            columns[ways[-1].name]["acceptance_by_position"], ways[-1].name, Path(config.picture)
        )


def column(
    measured: Measured,
    base: Measured,
    samples: Samples,
    decoding: GenerateConfig,
    loaded: Loaded,
) -> dict[str, Any]:
    """Return all figures of one way of decoding, texts and speedup included."""
    pairs = zip(samples.ids, measured.generations, strict=True)
    texts = [text_of(loaded.decode, ids, each.token_ids, decoding.stop) for ids, each in pairs]
    quality = text_figures(texts, [prompt.references for prompt in samples.prompts])
    gain = speedup(measured, base) if base.way.name == BASELINE and base is not measured else None
    return figures(measured) | {"speedup": None if gain is None else asdict(gain)} | (quality or {})


def is_same_output(measured: Sequence[Measured]) -> bool | None:
    """Return whether all ways made the same tokens for every prompt; None of a single way."""
    if len(measured) < 2:
        return None
    first, *others = ([each.token_ids for each in m.generations] for m in measured)
    return all(other == first for other in others)


def _origin(
    config: BenchConfig, decoding: GenerateConfig, samples: Samples, loaded: Loaded
) -> dict[str, Any]:
    return {
        "model": loaded.origin,
        "dtype": decoding.dtype,
        "device": device_name(device_of(loaded)),
        "prompts": config.prompts,
        "num_prompts": len(samples.prompts),
        "left_out": samples.left_out,
        "sample_seed": config.sample_seed,
        "prompt_ids": [each.id for each in samples.prompts],
        "batch_size": decoding.batch_size,
        "max_new_tokens": decoding.max_new_tokens,
        "repeats": config.repeats,
    }


def _write_table(
    columns: Mapping[str, Mapping[str, Any]],
    same: bool | None,
    origin: Mapping[str, Any],
    out: TextIO,
) -> None:
    out.writelines(line + "\n" for line in bench_table(columns))
    left_out = f", {origin['left_out']} too long" if origin["left_out"] else ""
    outputs = {
        True: "; the same tokens",
        False: "; other tokens than autoregressive (docs/lossless.md)",
        None: "",
    }
    intervals = ", medians and 95% intervals over prompts" if origin["batch_size"] == 1 else ""
    out.write(
        f"{origin['num_prompts']} prompts of {origin['prompts']}{left_out}, {origin['dtype']} on "
        f"{origin['device']}, runs: {origin['repeats']}{intervals}{outputs[same]}\n"
    )
    if origin["batch_size"] > 1:
        out.write(f"batches of {origin['batch_size']}: tokens/s count the prompts' reading, too\n")
