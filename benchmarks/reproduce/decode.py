"""Decode held-out prompts from every run, over a grid of exits and draft lengths."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.prompts import held_out_prompts
from benchmarks.reproduce.arms import Job
from benchmarks.reproduce.gather import SWEEP
from configs.command import ROOT
from data_pipelines.loader import open_split
from data_pipelines.prepare import TOKENIZER_FOLDER
from data_pipelines.tokenize import load_tokenizer

EXITS = (2, 3, 4, 6)
DRAFTS = (2, 4, 6)
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 48, 64


def write_prompts(
    data_folder: Path, path: Path, *, count: int = NUM_PROMPTS, length: int = PROMPT_TOKENS
) -> None:
    """Write how documents of the validation split begin, as .jsonl; the same file each time."""
    tokenizer = load_tokenizer(data_folder / TOKENIZER_FOLDER)
    chosen = held_out_prompts(open_split(data_folder, "valid"), count=count, length=length)
    lines = [json.dumps({"prompt": tokenizer.decode(ids)}) + "\n" for ids in chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def sweep_all(
    jobs: Sequence[Job], prompts: Path, *, exits: Sequence[int] = EXITS, fuse: bool = True
) -> None:
    """Measure every run, one after the other so that none disturbs another's clock.

    Args:
        jobs: which have been trained.
        prompts: their file.
        exits: that draft.
        fuse: whether to decode with the kernels that `generate` takes by itself.

    Raises:
        RuntimeError: if one fails; it has said why.
    """
    overrides = (f"max_new_tokens={NEW_TOKENS}", "stop_at_eos=false", f"fuse={fuse}".lower())
    for number, job in enumerate(jobs, 1):
        print(f"\ndecoding {number}/{len(jobs)}: {job.arm.title}, seed {job.seed}", flush=True)
        to = job.folder / SWEEP
        sweep(job.folder, prompts, to, exits=exits, drafts=DRAFTS, overrides=overrides)


def sweep(
    model: Path,
    prompts: Path,
    to: Path,
    *,
    exits: Sequence[int],
    drafts: Sequence[int],
    overrides: Sequence[str],
) -> None:
    """Measure a grid with one thread; cells that the file has are kept, if they are of these
    weights, prompts and settings.

    Args:
        model: a run, or a folder in Hugging Face form.
        prompts: their file.
        to: the .csv.
        exits: that draft.
        drafts: of a round.
        overrides: further keys of `inference sweep`.

    Raises:
        RuntimeError: if it fails; it has said why.
    """
    command = [sys.executable, "-m", "inference", "sweep", str(model), f"prompts={prompts}"]
    command += [f"to={to}", f"exit_layer={list(exits)}", f"num_speculations={list(drafts)}"]
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"sweeping {model} failed with exit status {done.returncode}")
