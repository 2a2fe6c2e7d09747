"""`python -m benchmarks.decode [MODEL] [layerskip=FOLDER layerskip_python=PYTHON] [picture=PNG]`.

Tokens per second of decoding in bfloat16, ours against the others', in one run: same weights, same
prompts, same number of new tokens, taking turns. MODEL is a folder in Hugging Face form; without
one it is SmolLM2-135M of the extra `real`, or random weights of its shape.

The layers from EXIT on add nothing (their o_proj and down_proj are scaled by 0), so every draft is
accepted by everyone: what is measured is how well a decoder uses an exit, not how good the exit is.
A line gives what the memory allows: each weight read once for a token, at the speed of a sum over a
tensor as large as the weights. Seconds are of whole generations, prompt included.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.decode_picture import save_picture
from benchmarks.decoders import Decoded, Job, hugging_face, ours, ours_batched, ours_drafting
from benchmarks.layerskip_process import LayerSkip
from benchmarks.lines import json_line, text_table
from benchmarks.real_model import real_or_random
from benchmarks.timing import Timings, interleave, ratio, spread
from configs.command import run_command
from inference.batch import BatchSettings
from inference.fast.convert import quicken
from inference.generation import Settings
from models.hf import load_pretrained, read_config
from models.llama import Llama

EXIT, DRAFTS = 10, (4, 6)
ROWS = 8
"""Of the batches."""
PROMPT_TOKENS, NEW_TOKENS = 40, 48
ROUNDS = 5
HUGGING_FACE = "transformers generate"
BANDWIDTH_REPEATS = 9

COLUMNS = ("decoder", "tokens_per_second", "low", "high", "times_hugging_face", "acceptance")


def main(words: list[str]) -> None:
    """Measure everything; print a table, then a JSON line a row.

    Raises:
        ValueError: for a word that it does not know, or half of what LayerSkip needs.
    """
    model, options = parse(words)
    with tempfile.TemporaryDirectory() as scratch:
        source, name = real_or_random(model, Path(scratch) / "model", quiet_above=EXIT)
        prompts = random_prompts(source)
        peer = None
        if "layerskip" in options:
            peer = LayerSkip(options["layerskip_python"], options["layerskip"], source)
        try:
            made: dict[str, Decoded] = {}
            jobs = noted(jobs_of(source, prompts, peer), made)
            timings = interleave(jobs, rounds=ROUNDS)
        finally:
            if peer is not None:
                peer.close()
        limits = bandwidth_limits(source)
    rows = rows_of(timings, made)
    print(f"{name}, bfloat16, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    print(text_table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    for precision, limit in limits.items():
        print(f"memory allows {limit:.0f} tokens/s one at a time with {precision} weights")
    for row in rows:
        print(json_line("decode", model=name, limits=limits, **row))
    if "picture" in options:
        save_picture(rows, limits, name, Path(options["picture"]))


def parse(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the model, if one is named, and the options.

    Raises:
        ValueError: for a word that is neither, or half of what LayerSkip needs.
    """
    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    unknown = set(options) - {"layerskip", "layerskip_python", "picture"}
    if unknown or len(names) > 1:
        raise ValueError(
            f"arguments {sorted(unknown) or names}: give one MODEL, layerskip=FOLDER, "
            "layerskip_python=PYTHON, picture=PNG, or less"
        )
    if ("layerskip" in options) != ("layerskip_python" in options):
        raise ValueError("layerskip=FOLDER and layerskip_python=PYTHON go together: give both")
    return names[0] if names else None, options


def random_prompts(source: Path) -> list[list[int]]:
    """Return prompts for a batch; which tokens matters to no decoder's speed."""
    vocab_size = read_config(source).vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocab_size, (ROWS, PROMPT_TOKENS), generator=generator).tolist()


def jobs_of(source: Path, prompts: list[list[int]], peer: LayerSkip | None) -> dict[str, Job]:
    """Return all decoders by name; those that decode one by one take the first prompt."""
    one, settings = prompts[:1], Settings(max_new_tokens=NEW_TOKENS)
    theirs: Any = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    theirs.eval()
    jobs = {HUGGING_FACE: hugging_face(theirs, one, NEW_TOKENS)}
    for d in DRAFTS:
        jobs[f"transformers assistant_early_exit={EXIT}, {d} drafts"] = hugging_face(
            theirs, one, NEW_TOKENS, exit_layer=EXIT, drafts=d
        )
    if peer is not None:
        jobs["LayerSkip autoregressive"] = peer.job(one, NEW_TOKENS)
        for d in DRAFTS:
            name = f"LayerSkip exit {EXIT}, {d} drafts"
            jobs[name] = peer.job(one, NEW_TOKENS, exit_layer=EXIT, drafts=d)
    plain, fused, int8 = (_loaded(source) for _ in range(3))
    quicken(fused)
    quicken(int8, weights="int8")
    jobs["Skipstone fuse=false"] = ours(plain, one, settings)
    for name, model in (("Skipstone", fused), ("Skipstone int8", int8)):
        jobs[name] = ours(model, one, settings)
        for d in DRAFTS:
            jobs[f"{name} exit {EXIT}, {d} drafts"] = ours_drafting(
                model, one, settings, exit_layer=EXIT, drafts=d
            )
    jobs[f"Skipstone batch {ROWS}"] = ours_batched(
        fused, prompts, settings, BatchSettings(rows=ROWS)
    )
    for d in DRAFTS:
        batch = BatchSettings(rows=ROWS, exit_layer=EXIT, num_speculations=d)
        jobs[f"Skipstone batch {ROWS} exit {EXIT}, {d} drafts"] = ours_batched(
            fused, prompts, settings, batch
        )
    return jobs


def _loaded(source: Path) -> Llama:
    return load_pretrained(source, dtype=torch.bfloat16, device="cpu").eval()


def noted(jobs: Mapping[str, Job], made: dict[str, Decoded]) -> dict[str, Job]:
    """Return jobs that also note what they made last."""

    def noting(name: str, job: Job) -> Job:
        def run() -> Decoded:
            made[name] = job()
            return made[name]

        return run

    return {name: noting(name, job) for name, job in jobs.items()}


def rows_of(timings: Mapping[str, Timings], made: Mapping[str, Decoded]) -> list[dict[str, Any]]:
    """Return a row for each decoder: speed, its ratio to transformers' round by round."""
    rows = []
    for name, timing in timings.items():
        done = made[name]
        rate = spread(tuple(done.tokens / seconds for seconds in timing.wall))
        gain = ratio(timings[HUGGING_FACE], timing).value
        gain *= done.tokens / made[HUGGING_FACE].tokens
        rows.append(
            {
                "decoder": name,
                "tokens_per_second": round(rate.value, 1),
                "low": round(rate.low, 1),
                "high": round(rate.high, 1),
                "times_hugging_face": round(gain, 2),
                "acceptance": round(done.accepted / done.drafted, 2) if done.drafted else "-",
                "cpu_seconds_per_token": round(timing.median("cpu") / done.tokens, 5),
                "seconds": asdict(spread(timing.wall)),
            }
        )
    return rows


def bandwidth_limits(source: Path) -> dict[str, float]:
    """Return tokens per second if reading each weight once were all; by precision of weights."""
    model = _loaded(source)
    parameters = list(model.parameters())
    if model.lm_head is not None:
        parameters = [p for p in parameters if p is not model.model.embed_tokens.weight]
    counts = {"bfloat16": 2 * sum(p.numel() for p in parameters)}
    counts["int8"] = counts["bfloat16"] // 2
    return {name: read_rate(count) / count for name, count in counts.items()}


def read_rate(count: int) -> float:
    """Return the bytes per second at which a tensor of so many bytes is read and summed."""
    x = torch.ones(count // 4)
    seconds = []
    for _ in range(BANDWIDTH_REPEATS):
        began = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - began)
    return count / median(seconds)


if __name__ == "__main__":
    run_command(main)
