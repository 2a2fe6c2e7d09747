"""`python -m inference generate MODEL key=value ...`."""

import sys

import torch

from configs.command import run_command
from configs.load import help_text, load
from inference.command import generate, read_prompts
from inference.config import GenerateConfig
from inference.load import load as load_model

USAGE = """usage: python -m inference generate MODEL prompt="text" [config=FILE] [key=value ...]

Continue a text. MODEL is the folder of a training run, one checkpoint in it, a folder in Hugging
Face form, or a hub id. FILE is YAML such as configs/generate/self_speculative.yaml; a key given
on the command line overrides it. Keys:
"""


def main(arguments: list[str]) -> None:
    """Generate what the command line describes."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{USAGE}\n{help_text(GenerateConfig)}\n")
        return
    config, model = parse(arguments)
    read_prompts(config)  # what is wrong with them should not wait for the model
    loaded = load_model(model, dtype=getattr(torch, config.dtype), device=_device(config.device))
    generate(config, loaded, sys.stdout, sys.stderr)


def parse(arguments: list[str]) -> tuple[GenerateConfig, str]:
    """Return the config and the model's place.

    Raises:
        ValueError: if the command or a key is unknown, or the model is missing.
    """
    command, *rest = arguments
    if command != "generate":
        raise ValueError(f"unknown command {command!r}: there is generate; see --help")
    if not rest or "=" in rest[0]:
        raise ValueError("no MODEL: name a run's folder, a model's folder or a hub id first")
    model, *overrides = rest
    files = [a.removeprefix("config=") for a in overrides if a.startswith("config=")]
    if len(files) > 1:
        raise ValueError(f"config is given {len(files)} times: give one file")
    keys = [a for a in overrides if not a.startswith("config=")]
    return load(GenerateConfig, files[0] if files else None, keys), model


def _device(wanted: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if wanted == "auto" else None
    return found or torch.device("cpu")


if __name__ == "__main__":
    run_command(main)
