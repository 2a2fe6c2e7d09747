"""`make reproduce`: train every part of the recipe with three seeds, decode, and write the tables.

Run it again and it goes on from what is there: finished runs and measured cells are kept. Words are
overrides of the training config, for a smaller or a larger experiment, besides:

    folder=runs/reproduce     where everything is
    at_once=2                 trainings that run side by side, one thread each
    page=docs/results.md      also put tables and pictures into this page and beside it
"""

from pathlib import Path

from benchmarks.reproduce.arms import Job, jobs
from benchmarks.reproduce.decode import sweep_all, write_prompts
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

FOLDER = "runs/reproduce"


def main(words: list[str]) -> None:
    """Do what is left to do; print the tables and write them into the folder."""
    options, overrides = parse(words)
    folder = Path(options["folder"])
    found = jobs(folder, tuple(overrides))
    data = prepare_data(found[0].config.data)
    train_all(found, at_once=int(options["at_once"]))
    write_prompts(data, folder / "prompts.jsonl")
    sweep_all(found, folder / "prompts.jsonl")
    outcomes = [outcome(job.arm.name, job.seed, job.folder) for job in found]
    shape = model_config(found[0].config)
    tables = tables_of(outcomes, flops_of(found), shape)
    page = Path(options["page"]) if "page" in options else None
    write_tables(tables, folder, page)
    draw(outcomes, shape, folder)
    if page is not None:
        draw(outcomes, shape, page.parent)


def parse(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options, and the overrides of the training config.

    Raises:
        ValueError: if at_once is not a number above 0.
    """
    given, overrides = options_of(words, ("folder", "at_once", "page"))
    options = {"folder": FOLDER, "at_once": "2"} | given
    if not options["at_once"].isdigit() or options["at_once"] == "0":
        raise ValueError(f"at_once={options['at_once']} must be a number, 1 or more")
    return options, overrides


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
