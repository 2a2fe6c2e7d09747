"""The command `sweep`: a grid over exit layer and draft length, into a CSV file and a picture."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from inference.config import GenerateConfig
from inference.early_exit import check_exit
from inference.identity import Identity, identify
from inference.load import Loaded
from inference.opening import Open, device_name, device_of
from inference.parse import parse_with_decoding
from inference.pictures.contour import save_contour
from inference.prompt_sets.encode import Samples, encode_sample
from inference.prompt_sets.prompt import Prompt
from inference.prompt_sets.read import read_prompt_set
from inference.report import table_lines
from inference.sweep.cell import digest, measure_cell, settings_text
from inference.sweep.config import SweepConfig, default_exits
from inference.sweep.rows import KEY, Row, read_rows, write_rows

logger = logging.getLogger(__name__)


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Measure the grid that the command line describes.

    Raises:
        ValueError: if a key, prompt or setting does not fit, or the file is another sweep's;
            nothing has been decoded then.
    """
    config, decoding = parse_sweep(overrides)
    prompts = read_prompt_set(config.prompts)
    loaded = open_model(model, decoding)
    identity = identify(model, dtype=decoding.precision, device=device_name(device_of(loaded)))
    sweep(config, decoding, prompts, loaded, identity, sys.stdout)


def parse_sweep(overrides: Sequence[str]) -> tuple[SweepConfig, GenerateConfig]:
    """Return what to measure, and how to decode otherwise.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    config, decoding = parse_with_decoding(SweepConfig, overrides)
    check_decoding(decoding)
    return config, decoding


def check_decoding(decoding: GenerateConfig) -> None:
    """Refuse a strategy where it is not the user's to choose, and a length without a rate.

    Raises:
        ValueError: naming the key.
    """
    if decoding.strategy != "autoregressive":
        raise ValueError(
            f"strategy={decoding.strategy}: self-speculation is held against plain decoding here; "
            "leave it out"
        )
    if decoding.max_new_tokens < 2:
        raise ValueError("max_new_tokens=1 leaves nothing to measure: the first token is prefill's")


def sweep(
    config: SweepConfig,
    decoding: GenerateConfig,
    prompts: Sequence[Prompt],
    loaded: Loaded,
    identity: Identity,
    out: TextIO,
) -> None:
    """Measure what the file does not have yet, one row after another; then draw it.

    Raises:
        ValueError: if a prompt or setting does not fit the model, or the file is another sweep's.
    """
    depth = loaded.config.num_hidden_layers
    exits = config.exit_layer or default_exits(depth)
    for exit_layer in exits:
        check_exit(loaded.model, exit_layer)
    if not exits:
        raise ValueError(f"the model has {depth} layer, and no exit before it: nothing can draft")
    samples = encode_sample(
        loaded,
        prompts,
        count=config.num_samples,
        seed=config.sample_seed,
        max_new_tokens=decoding.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        chat=decoding.chat,
    )
    path = Path(config.to)
    same = _same(config, decoding, samples, identity)
    rows = read_rows(path, same)
    grid = [(e, k) for e in exits for k in config.num_speculations]
    for row in _missing(config, decoding, samples, loaded, grid, rows):
        rows.append(row | same)
        write_rows(path, rows)
    found = {key: row for row in rows if (key := _key(row)) in grid}
    out.writelines(line + "\n" for line in sweep_table([found[key] for key in grid]))
    picture = Path(config.picture or path.with_suffix(".png"))
    speedups = {key: float(row["speedup"]) for key, row in found.items()}
    title = f"{loaded.origin}, {decoding.dtype}, {len(samples.ids)} prompts"
    save_contour({key: speedups[key] for key in grid}, title, picture)
    out.write(f"{len(grid)} settings in {path}, drawn in {picture}\n")


def sweep_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table, a row for each setting; the fastest has a star."""
    best = max(rows, key=lambda row: float(row["speedup"]))
    lines = [("exit", "drafts", "acceptance", "tokens/s", "speedup", "", "same")]
    for row in rows:
        low, high = (float(row[name]) for name in ("speedup_low", "speedup_high"))
        lines.append(
            (
                row["exit_layer"],
                row["num_speculations"],
                f"{float(row['acceptance'] or 'nan'):.3f}",
                f"{float(row['tokens_per_second']):.1f}",
                f"{float(row['speedup']):.2f}x ({low:.2f}-{high:.2f})",
                "*" if row is best else "",
                {"True": "yes", "False": "no", "": "-"}[row["same_output"]],
            )
        )
    return table_lines(lines)


def _missing(
    config: SweepConfig,
    decoding: GenerateConfig,
    samples: Samples,
    loaded: Loaded,
    grid: Sequence[tuple[int, int]],
    rows: Sequence[Row],
) -> Iterator[dict[str, str]]:
    """Measure what the rows do not have, and yield it."""
    known = {_key(row) for row in rows}
    missing = [key for key in grid if key not in known]
    if len(missing) < len(grid):
        logger.info("%d of %d settings are measured already", len(grid) - len(missing), len(grid))
    for number, (e, k) in enumerate(missing, 1):
        logger.info("setting %d of %d: exit %d, %d drafts", number, len(missing), e, k)
        yield measure_cell(decoding, e, k, samples, loaded, repeats=config.repeats).values()


def _key(row: Row) -> tuple[int, int]:
    exit_layer, num_speculations = (int(row[name]) for name in KEY)
    return exit_layer, num_speculations


def _same(
    config: SweepConfig, decoding: GenerateConfig, samples: Samples, identity: Identity
) -> dict[str, str]:
    return asdict(identity) | {
        "prompts": config.prompts,
        "samples": digest(samples),
        "settings": settings_text(decoding, config.repeats),
    }
