"""`make reproduce`: train every part of the recipe with three seeds, decode, and write the tables.

Run it again and it goes on from what is there: finished runs and measured cells are kept. Words are
overrides of the training config, for a smaller or a larger experiment, besides:

    folder=runs/reproduce     where everything is
    at_once=2                 trainings that run side by side, one thread each
    page=docs/results.md      also put tables and pictures into this page and beside it
    config=FILE               another model and recipe than configs/pretrain/reproduce.yaml
    arms=plain,both           not all of plain, dropout, exit_loss, both, gradual, all_exits
    exits=2,3,4,6             which draft
    fuse=true                 decode with the kernels that `generate` takes by itself
"""

from pathlib import Path

from benchmarks.reproduce.arms import ARMS, CONFIG, Job, jobs, named
from benchmarks.reproduce.decode import EXITS, sweep_all, write_prompts
from benchmarks.reproduce.gather import Outcome, outcome
from benchmarks.reproduce.pictures import save_decoding, save_exits, save_middle
from benchmarks.reproduce.publish import options_of, write_tables
from benchmarks.reproduce.tables import (
    cost_table,
    curricula_table,
    decoding_table,
    exits_table,
    grid_table,
    middle_table,
)
from benchmarks.reproduce.train import train_all
from configs.command import run_command
from data_pipelines.prepare_sources import prepare_data
from models.config import LlamaConfig
from trainer.expectation import expected_run
from trainer.model_shape import model_config

DEFAULTS = {
    "folder": "runs/reproduce",
    "at_once": "2",
    "config": CONFIG,
    "arms": ",".join(arm.name for arm in ARMS),
    "exits": ",".join(map(str, EXITS)),
    "fuse": "true",
}


def main(words: list[str]) -> None:
    """Do what is left to do; print the tables and write them into the folder."""
    options, overrides = parse(words)
    folder = Path(options["folder"])
    exits = [int(word) for word in options["exits"].split(",")]
    found = jobs(folder, tuple(overrides), path=options["config"], arms=named(options["arms"]))
    shape = model_config(found[0].config)
    if max(exits) >= shape.num_hidden_layers:
        raise ValueError(
            f"exits={options['exits']}: the last of {shape.num_hidden_layers} layers "
            "is not an exit that drafts"
        )
    data = prepare_data(found[0].config.data)
    train_all(found, at_once=int(options["at_once"]))
    write_prompts(data, folder / "prompts.jsonl")
    fuse = options["fuse"] == "true"
    sweep_all(found, folder / "prompts.jsonl", exits=exits, fuse=fuse)
    outcomes = [outcome(job.arm.name, job.seed, job.folder) for job in found]
    tables = tables_of(outcomes, flops_of(found), shape)
    page = Path(options["page"]) if "page" in options else None
    write_tables(tables, folder, page)
    draw(outcomes, shape, folder)
    if page is not None:
        draw(outcomes, shape, page.parent)


def parse(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options, and the overrides of the training config.

    Raises:
        ValueError: if an option is not what it has to be.
    """
    given, overrides = options_of(words, (*DEFAULTS, "page"))
    options = DEFAULTS | given
    if not is_count(options["at_once"]):
        raise ValueError(f"at_once={options['at_once']} must be a number, 1 or more")
    if not all(map(is_count, options["exits"].split(","))):
        raise ValueError(f"exits={options['exits']} must be numbers, 1 or more, and commas")
    if options["fuse"] not in ("true", "false"):
        raise ValueError(f"fuse={options['fuse']} must be true or false")
    return options, overrides


def is_count(word: str) -> bool:
    """Whether a word is a number above 0."""
    return word.isdigit() and int(word) > 0


def flops_of(found: list[Job]) -> dict[str, float]:
    """Return the FLOPs of one run of each arm, heads of its exits included."""
    return {job.arm.name: expected_run(job.config, model_config(job.config)).flops for job in found}


def tables_of(
    outcomes: list[Outcome], flops: dict[str, float], shape: LlamaConfig
) -> dict[str, str]:
    """Return every table by its name."""
    return {
        "cost": cost_table(outcomes, flops),
        "exits": exits_table(outcomes),
        "curricula": curricula_table(outcomes, flops),
        "middle": middle_table(outcomes),
        "decoding": decoding_table(outcomes, shape),
        "grid": grid_table(outcomes, shape),
    }


def draw(outcomes: list[Outcome], shape: LlamaConfig, folder: Path) -> None:
    """Write every picture into a folder."""
    save_exits(outcomes, folder / "results_exits.png")
    save_middle(outcomes, folder / "results_middle.png")
    save_decoding(outcomes, shape, folder / "results_decoding.png")


if __name__ == "__main__":
    run_command(main)
