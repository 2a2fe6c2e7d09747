"""`python -m parallel.convert SRC DST to=dcp|zero|hf [key=value ...]`."""

import sys
from pathlib import Path

from configs.command import run_command
from configs.help import help_text
from configs.load import load
from parallel.convert.convert import ConvertConfig, convert

USAGE = """usage: python -m parallel.convert SRC DST to=dcp|zero|hf [key=value ...]

Write the checkpoint SRC as a new folder DST: float32 values are kept bit by bit, and the
optimizer's state goes along where there is one. SRC is a run of ours or one checkpoint in it; a
folder that DeepSpeed saved to at stage 1, 2 or 3, or a tag in it, universal or not; or a Hugging
Face folder.

  to=dcp   a run folder, which `run_folder=DST` resumes with either engine and `inference` reads
  to=zero  a universal checkpoint, which DeepSpeed loads at any stage and on any number of ranks
  to=hf    a folder that transformers loads

"""


def main(arguments: list[str]) -> None:
    """Do what the command line describes.

    Raises:
        ValueError: if the command is not complete, or what it says cannot be done.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{USAGE}{help_text(ConvertConfig)}\n")
        return
    folders, settings = arguments[:2], arguments[2:]
    if len(folders) < 2 or any("=" in folder for folder in folders):
        raise ValueError("name two folders first, SRC and DST, then to=dcp, to=zero or to=hf")
    config = load(ConvertConfig, None, settings)
    convert(Path(folders[0]), Path(folders[1]), config)
    sys.stdout.write(f"converted {folders[0]} to {folders[1]}\n")


if __name__ == "__main__":
    run_command(main)
