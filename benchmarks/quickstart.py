"""`make quickstart [ENGINE=zero3]`: data, training on two ranks, decoding both ways, a table and a
picture.

Each stage is a command that you could type yourself, and is printed before it runs. Run it again
and it goes on from what is there: prepared data is reused, a training run that was interrupted goes
on from its last checkpoint, and one that is finished is not repeated. Remove the run folder to
start again.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding import decode_both_ways
from benchmarks.picture import save_picture
from benchmarks.prompts import held_out_prompts
from benchmarks.report import Report, hardware, table, versions, write_report
from configs.command import run_command
from configs.load import load as load_config
from data_pipelines.loader import open_split
from data_pipelines.prepare import prepare
from inference.bench import Comparison, acceptance_rate
from inference.generation import Settings
from inference.load import Loaded, load
from models.flops import num_parameters
from models.llama import Llama
from models.plan import full
from parallel.checkpoint import read_state
from parallel.publish import latest
from trainer.config import PretrainConfig
from trainer.metrics import FILE_NAME, read_metrics
from trainer.run_folder import checkpoints_folder

CONFIGS = {
    "fsdp": "configs/pretrain/quickstart.yaml",
    "zero3": "configs/pretrain/quickstart_zero3.yaml",
}
"""By `engine`; they differ in their section `parallel` only."""
RANKS = 2
EXIT_LAYER = 3
NUM_SPECULATIONS = 4
NUM_PROMPTS = 12
PROMPT_TOKENS = 48
MAX_NEW_TOKENS = 96
REPEATS = 3
THREADS = 1
"""Of decoding: a model this small gains a third from a second one, both ways of decoding alike, and
on a busy machine it loses far more, because all threads wait for the slowest."""


def main(words: list[str]) -> None:
    """Run all stages; `words` are `engine=fsdp|zero3` and overrides of the training configuration.

    Raises:
        ValueError: if there is no such engine.
    """
    path, overrides = choose(words)
    now = time.time()
    started = float(os.environ.get("QUICKSTART_STARTED", now))
    seconds = {"environment": now - started} if started < now else {}
    config = load_config(PretrainConfig, path, overrides)
    run_folder, python = Path(config.run_folder), _python()
    resumed_from_step = _finished_steps(config)

    say("1. Prepare the data: this interpreter's own standard library")
    for_data = [override for override in overrides if override.startswith("data.")]
    seconds["data"] = run([python, "-m", "data_pipelines", path, *for_data])
    engine = "FSDP2" if config.parallel.zero is None else f"ZeRO-{config.parallel.zero.stage}"
    say(f"2. Train with layer dropout and early-exit loss on {RANKS} {engine} ranks")
    seconds["training"] = train(config, [path, *overrides], python)
    say(f"3. Decode {NUM_PROMPTS} held-out prompts from the shards, both ways")
    began = time.time()
    torch.set_num_threads(THREADS)
    loaded = load(run_folder, dtype=torch.float32, device=torch.device("cpu"))
    prompts = held_out_prompts(
        open_split(prepare(config.data), "valid"), count=NUM_PROMPTS, length=PROMPT_TOKENS
    )
    comparison = decode(loaded.model, prompts)
    seconds["decoding"] = time.time() - began

    lines = read_metrics(run_folder / FILE_NAME)
    report = make_report(
        lines,
        comparison,
        loaded,
        prompt=prompts[0],
        seconds=seconds,
        seconds_total=time.time() - started,
        resumed_from_step=resumed_from_step,
    )
    save_picture(report, lines, run_folder / "report.png")
    write_report(report, run_folder / "report.json")
    say("4. Result\n\n" + table(report))
    say(closing(report, run_folder, python))


def choose(words: list[str]) -> tuple[str, list[str]]:
    """Return the configuration of the engine that is asked for, and the overrides.

    Engines other than the default have a run folder of their own.

    Raises:
        ValueError: if there is no such engine.
    """
    engine, overrides = "fsdp", []
    for word in words:
        if word.startswith("engine="):
            engine = word.removeprefix("engine=")
        else:
            overrides.append(word)
    if engine not in CONFIGS:
        raise ValueError(f"engine={engine} is unknown: choose among {', '.join(CONFIGS)}")
    if engine != "fsdp" and not any(word.startswith("run_folder=") for word in overrides):
        overrides.append(f"run_folder=runs/quickstart_{engine}")
    return CONFIGS[engine], overrides


def train(config: PretrainConfig, arguments: list[str], python: str) -> float:
    """Run the training command to its last step; return its seconds.

    Args:
        config: what the arguments say.
        arguments: of the trainer.
        python: the interpreter.

    Raises:
        RuntimeError: if it stops earlier.
    """
    done = _finished_steps(config)
    if done:
        what = "nothing is left to train" if done == config.steps else "going on from there"
        say(
            f"{config.run_folder} has {done} of {config.steps} steps: {what} (remove the folder "
            "to start again)"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    seconds = run([python, *torchrun, "-m", "trainer", *arguments])
    done = _finished_steps(config)
    if done < config.steps:
        raise RuntimeError(
            f"training stopped after step {done} of {config.steps}: run the quickstart again to go "
            "on"
        )
    return seconds


def decode(model: Llama, prompts: list[list[int]]) -> Comparison:
    """Decode greedily both ways, past ends of documents so that all prompts count alike."""
    return decode_both_ways(
        model,
        prompts,
        draft=full(EXIT_LAYER),
        num_speculations=NUM_SPECULATIONS,
        settings=Settings(max_new_tokens=MAX_NEW_TOKENS),
        repeats=REPEATS,
    )


def _finished_steps(config: PretrainConfig) -> int:
    """Return the step of the run's newest checkpoint; 0 without one."""
    newest = latest(checkpoints_folder(config))
    return 0 if newest is None else int(read_state(newest)["step"])


def _python() -> str:
    """Return this interpreter as a user in this folder would type it."""
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here


def say(text: str) -> None:
    """Print at once: the stages write to the same console."""
    print(f"\n{text}", flush=True)


def run(command: list[str]) -> float:
    """Run a stage on the console that we have; return its seconds.

    Raises:
        RuntimeError: if it fails; it has said why.
    """
    threads = max(1, (os.cpu_count() or 1) // RANKS)
    print(f"$ OMP_NUM_THREADS={threads} {shlex.join(command)}", flush=True)
    began = time.time()
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        raise RuntimeError(f"the command above failed with exit status {done.returncode}")
    return time.time() - began


def make_report(
    lines: list[dict[str, Any]],
    comparison: Comparison,
    loaded: Loaded,
    *,
    prompt: list[int],
    seconds: dict[str, float],
    seconds_total: float,
    resumed_from_step: int,
) -> Report:
    """Gather what was measured.

    Args:
        lines: `metrics.jsonl`.
        comparison: both ways of decoding.
        loaded: the model.
        prompt: the first prompt decoded, as token ids.
        seconds: of each stage.
        seconds_total: of everything.
        resumed_from_step: steps that were done before.
    """
    train = [line for line in lines if line["kind"] == "train"][-1]
    valid = [line for line in lines if line["kind"] == "valid"][-1]
    continuation = comparison.candidate.generations[0].token_ids
    speed = {
        "autoregressive": _known(comparison.baseline.tokens_per_second),
        "self_speculative": _known(comparison.candidate.tokens_per_second),
    }
    return Report(
        perplexity_per_exit=valid["perplexity_per_exit"],
        acceptance_rate=_known(acceptance_rate(comparison.candidate.generations)),
        tokens_per_second=speed,
        speedup=_known(comparison.speedup),
        same_tokens=comparison.is_same_output,
        seconds_total=seconds_total,
        seconds_per_stage=seconds,
        resumed_from_step=resumed_from_step,
        model=dataclasses.asdict(loaded.config),
        num_parameters=num_parameters(loaded.config),
        steps=train["step"],
        tokens_seen=train["tokens_seen"],
        exit_layer=EXIT_LAYER,
        num_speculations=NUM_SPECULATIONS,
        num_prompts=NUM_PROMPTS,
        max_new_tokens=MAX_NEW_TOKENS,
        example={"prompt": loaded.decode(prompt), "continuation": loaded.decode(continuation)},
        hardware=hardware(),
        versions=versions(),
    )


def _known(figure: float | None) -> float:
    assert figure is not None, "MAX_NEW_TOKENS is long enough to measure"
    return figure


def closing(report: Report, run_folder: Path, python: str) -> str:
    """Return an example, and what to type next."""
    tensorboard = str(Path(python).with_name("tensorboard"))
    return f"""One prompt and how the model goes on:

{report.example["prompt"]}>>>{report.example["continuation"]}

Picture and figures: {run_folder / "report.png"}, {run_folder / "report.json"}
Training curves:     {tensorboard} --logdir {run_folder}   (see docs/tensorboard.md)
Generate:            {python} -m inference generate {run_folder} prompt="def main(" \\
                         strategy=self_speculative exit_layer={EXIT_LAYER} compare=true \\
                         fuse=false"""


if __name__ == "__main__":
    run_command(main)
