"""Prepare data ahead of training, or show it: `python -m data_pipelines [show] CONFIG`."""

import sys
import time

from configs.command import run_command
from configs.help import help_text
from configs.load import load_part, load_section
from data_pipelines.config import DataConfig
from data_pipelines.prepare import TOKENIZER_FOLDER, read_prepared
from data_pipelines.prepare_sources import prepare_data
from data_pipelines.show import ShowConfig, show

USAGE = """usage: python -m data_pipelines CONFIG [data.key=value ...]    (or: prepare CONFIG)
       python -m data_pipelines show CONFIG [step=0] [rank=0] [world=1] [most=4] [key=value ...]

Prepares what the `data` section of CONFIG describes (a trainer's config, or that section alone),
unless it is prepared already, and says where it is. `show` prints what a rank of a run (the config
of a trainer) trains on at a step: text, which tokens are learnt, where documents end. Keys:

"""


def main(arguments: list[str]) -> None:
    """Run the command line.

    Raises:
        ValueError: one line naming the key or the file at fault, and the remedy.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE + help_text(DataConfig, "data."))
        return
    if not arguments:
        sys.exit(USAGE.splitlines()[0])
    command, *rest = arguments
    if command == "show":
        if not rest:
            sys.exit(USAGE.splitlines()[1].strip())
        for line in show(load_part(ShowConfig, rest[0], rest[1:]), colour=sys.stdout.isatty()):
            print(line)
        return
    if command == "prepare" and rest:
        arguments = rest
    started = time.monotonic()
    folder = prepare_data(load_section(DataConfig, arguments[0], "data", arguments[1:]))
    prepared = read_prepared(folder)
    print(f"{'split':<8}{'documents':>12}{'tokens':>16}{'sequences':>12}")
    for name, size in (("train", prepared.train), ("valid", prepared.valid)):
        print(f"{name:<8}{size.documents:>12,}{size.tokens:>16,}{size.sequences:>12,}")
    if not prepared.train.sequences:
        print("train is streamed, and not prepared")
    print(f"{prepared.seq_len} positions a sequence, vocabulary of {prepared.vocab_size}")
    print(f"tokenizer: {folder / TOKENIZER_FOLDER}")
    print(f"data:      {folder} ({time.monotonic() - started:.1f} s)")


if __name__ == "__main__":
    run_command(main)
