"""`python -m inference COMMAND MODEL ... key=value ...`: generate, verify, perplexity, export."""

import sys

import torch

from configs.command import run_command
from configs.load import help_text, load
from inference.command import generate, read_prompts
from inference.config import GenerateConfig
from inference.export import ExportConfig, export
from inference.load import Loaded
from inference.load import load as load_model
from inference.perplexity import PerplexityConfig, perplexity, read_texts
from inference.verify import verify
from inference.verify_config import VerifyConfig

USAGE = """usage: python -m inference generate MODEL prompt="text" [config=FILE] [key=value ...]
       python -m inference verify MODEL prompts=FILE [key=value ...]
       python -m inference perplexity MODEL texts=FILE [key=value ...]
       python -m inference export MODEL FOLDER [key=value ...]

generate continues a text; verify checks that self-speculation changes no output; perplexity scores
a text at every exit; export writes a folder that transformers loads. MODEL is the folder of a
training run, one checkpoint in it, a folder in Hugging Face form, or a hub id. config=FILE is YAML
such as configs/generate/self_speculative.yaml; a key on the command line overrides it.
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
        sys.stdout.write(f"{USAGE}\n{keys}")
        return
    command, *rest = arguments
    commands = {
        "generate": _generate,
        "verify": _verify,
        "perplexity": _perplexity,
        "export": _export,
    }
    if command not in commands:
        raise ValueError(f"unknown command {command!r}: there are {', '.join(commands)}")
    if not rest or "=" in rest[0]:
        raise ValueError("no MODEL: name a run's folder, a model's folder or a hub id first")
    commands[command](rest[0], rest[1:])


def _generate(model: str, overrides: list[str]) -> None:
    config = parse_generate(overrides)
    read_prompts(config)  # what is wrong with them should not wait for the model
    generate(config, _load(model, config), sys.stdout, sys.stderr)


def _verify(model: str, overrides: list[str]) -> None:
    config = load(VerifyConfig, None, overrides)
    read_prompts(config.plain())
    verify(config, _load(model, config), sys.stdout)


def parse_generate(overrides: list[str]) -> GenerateConfig:
    """Return the config of `generate`: a file, if one is named, changed by the other overrides.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    files = [a.removeprefix("config=") for a in overrides if a.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"config is given {len(files)} times: give one file")
    keys = [a for a in overrides if not a.startswith("config=")]
    return load(GenerateConfig, files[0] if files else None, keys)


def _export(model: str, rest: list[str]) -> None:
    if not rest or "=" in rest[0]:
        raise ValueError("no FOLDER: name a new folder after the model")
    folder = export(model, rest[0], load(ExportConfig, None, rest[1:]))
    sys.stdout.write(f"exported {model} to {folder}\n")


def _perplexity(model: str, overrides: list[str]) -> None:
    config = load(PerplexityConfig, None, overrides)
    read_texts(config.texts)
    perplexity(config, _load(model, config), sys.stdout)


def _load(model: str, config: GenerateConfig | VerifyConfig | PerplexityConfig) -> Loaded:
    return load_model(model, dtype=getattr(torch, config.dtype), device=_device(config.device))


def _device(wanted: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if wanted == "auto" else None
    return found or torch.device("cpu")


if __name__ == "__main__":
    run_command(main)
