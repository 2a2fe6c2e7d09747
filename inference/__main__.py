"""`python -m inference COMMAND MODEL ... key=value ...`: generate, verify, perplexity, export."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import torch

from configs.command import run_command
from configs.help import help_text
from configs.load import load
from inference.command import generate, read_prompts
from inference.commands import COMMANDS, Command
from inference.config import GenerateConfig
from inference.export import ExportConfig, export
from inference.fast.convert import quicken
from inference.interactive import interact
from inference.load import Loaded
from inference.load import load as load_model
from inference.opening import Placed
from inference.parse import parse_generate
from inference.perplexity import PerplexityConfig, perplexity, read_texts
from inference.ranks import Ranks
from inference.tuned import with_tuned
from inference.verify import verify
from inference.verify_config import VerifyConfig
from parallel.together import check_equal
from parallel.world import World, joined, on_first

USAGE = """usage: python -m inference generate MODEL prompt="text" [config=FILE] [key=value ...]
       python -m inference generate MODEL interactive=true [chat=true] [key=value ...]
       python -m inference verify MODEL prompts=FILE [key=value ...]
       python -m inference perplexity MODEL texts=FILE [key=value ...]
       python -m inference export MODEL FOLDER [key=value ...]
       python -m inference bench MODEL prompts=SET strategy=self_speculative exit_layer=E [...]
       python -m inference sweep MODEL prompts=SET to=FILE.csv [key=value ...]
       python -m inference tune MODEL prompts=SET [key=value ...]
       python -m inference eval MODEL tasks=NAME,NAME [exit_layer=E] [key=value ...]
       python -m inference exits MODEL prompt="text" [picture=FILE.png] [key=value ...]
       python -m inference follow MODEL exits='[4,8]' prompts=SET [tasks=NAME,NAME] [key=value ...]

generate continues a text; verify checks that self-speculation changes no output; perplexity scores
a text at every exit; export writes a folder that transformers loads; bench measures a way of
decoding on many prompts, sweep a grid of exits and draft lengths; tune searches for the fastest and
writes it beside the model, where generate finds it; eval runs tasks of lm-evaluation-harness at any
exit; exits shows which exit would have been enough for each token; follow evaluates the checkpoints
of a run as they appear. MODEL is the folder of a training run, one checkpoint in it, a folder in
Hugging Face form, or a hub id. config=FILE is YAML such as configs/generate/self_speculative.yaml;
a key on the command line overrides it. On several ranks put `torchrun --standalone --nproc-per-node
N` in place of `python`, for generate, verify and perplexity; the others work in one process.
"""


def main(arguments: list[str]) -> None:
    """Do what the command line describes.

    Raises:
        ValueError: if the command or a key is unknown, or the model is missing.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        keys = f"Keys of generate:\n\n{help_text(GenerateConfig)}\n"
        keys += f"\nKeys of verify:\n\n{help_text(VerifyConfig)}\n"
        keys += f"\nKeys of perplexity:\n\n{help_text(PerplexityConfig)}\n"
        keys += f"\nKeys of export:\n\n{help_text(ExportConfig)}\n"
        for name, command in COMMANDS.items():
            keys += f"\nKeys of {name}{command.others}:\n\n{help_text(command.config)}\n"
        sys.stdout.write(f"{USAGE}\n{keys}")
        return
    name, *rest = arguments
    commands: dict[str, Callable[[str, list[str]], None]] = {
        "generate": _generate,
        "verify": _verify,
        "perplexity": _perplexity,
        "export": _export,
        **{key: partial(_run, command) for key, command in COMMANDS.items()},
    }
    if name not in commands:
        raise ValueError(f"unknown command {name!r}: there are {', '.join(commands)}")
    if not rest or "=" in rest[0]:
        raise ValueError("no MODEL: name a run's folder, a model's folder or a hub id first")
    commands[name](rest[0], rest[1:])


def _run(command: Command, model: str, overrides: list[str]) -> None:
    with joined("cpu") as world:
        if not _is_alone(world):
            raise ValueError("this command works in one process: start it without torchrun")
        command.run(model, overrides, _load)


def _generate(model: str, overrides: list[str]) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config = parse_generate(with_tuned(model, overrides, _device, ranks=ranks))
    # what is wrong with the prompts should not wait for the model
    prompts = [] if config.interactive else read_prompts(config)
    with joined(config.device) as world:
        _check_ranks(world, config, prompts)
        loaded = _load(model, config, world)
        if config.interactive:
            interact(config, loaded, sys.stdin, sys.stdout, sys.stderr)
            return
        out, notes = (on_first(world, stream) for stream in (sys.stdout, sys.stderr))
        generate(config, loaded, out, notes, world)


def _verify(model: str, overrides: list[str]) -> None:
    config = load(VerifyConfig, None, overrides)
    prompts = read_prompts(config.plain())
    with joined(config.device) as world:
        _check_ranks(world, config, prompts)
        verify(config, _load(model, config, world), on_first(world, sys.stdout))


def _export(model: str, rest: list[str]) -> None:
    if not rest or "=" in rest[0]:
        raise ValueError("no FOLDER: name a new folder after the model")
    config = load(ExportConfig, None, rest[1:])
    with joined("cpu") as world:
        if not _is_alone(world):
            raise ValueError("export writes one folder by one process: start it without torchrun")
        folder = export(model, rest[0], config)
    sys.stdout.write(f"exported {model} to {folder}\n")


def _perplexity(model: str, overrides: list[str]) -> None:
    config = load(PerplexityConfig, None, overrides)
    texts = read_texts(config.texts)
    with joined(config.device) as world:
        _check_ranks(world, config, texts)
        perplexity(config, _load(model, config, world), on_first(world, sys.stdout))


def _check_ranks(world: World | None, config: object, texts: list[str]) -> None:
    """Refuse what ranks cannot do together, before any compute.

    Raises:
        ValueError: if there are no ranks to share the prompts.
        RuntimeError: if the ranks were told different things.
    """
    if isinstance(config, GenerateConfig) and config.ranks == "data" and _is_alone(world):
        raise ValueError(
            "ranks=data shares prompts among ranks, and there is one process: start it by torchrun "
            "--nproc-per-node N, or leave it out"
        )
    if isinstance(config, GenerateConfig) and config.interactive and not _is_alone(world):
        raise ValueError("interactive=true works in one process: start it without torchrun")
    if world is not None:
        check_equal((config, texts), "settings or texts")


def _is_alone(world: World | None) -> bool:
    return world is None or world.size == 1


def _load(model: str, config: Placed, world: World | None = None) -> Loaded:
    ranks = None
    if world is not None and world.size > 1:
        ranks = Ranks(world)
        if isinstance(config, GenerateConfig):
            ranks = Ranks(world, config.ranks, config.reshard_after_forward)
    device = _device(config.device) if world is None else world.device
    loaded = load_model(model, dtype=getattr(torch, config.dtype), device=device, ranks=ranks)
    if _is_decoding(config) and (ranks is None or ranks.split == "tensor"):
        weights = "dtype" if isinstance(config, VerifyConfig) else config.weights
        quicken(loaded.model, weights=weights)
    return loaded


def _is_decoding(config: Placed) -> TypeGuard[GenerateConfig | VerifyConfig | PerplexityConfig]:
    """Return whether the model is to be in the form that decodes fastest."""
    if isinstance(config, PerplexityConfig):
        return config.weights == "int8"  # else it scores the weights as they were trained
    return isinstance(config, VerifyConfig) or (isinstance(config, GenerateConfig) and config.fuse)


def _device(wanted: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if wanted == "auto" else None
    return found or torch.device("cpu")


if __name__ == "__main__":
    run_command(main)
