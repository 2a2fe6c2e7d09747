import math
from pathlib import Path

import pytest

from benchmarks.reproduce.__main__ import DEFAULTS, main, parse
from benchmarks.reproduce.arms import ARMS, PLAIN, SEEDS, jobs, named
from benchmarks.reproduce.gather import Drafted, Outcome, read_sweep
from benchmarks.reproduce.intervals import difference, mean, perplexity
from benchmarks.reproduce.publish import marked
from benchmarks.reproduce.tables import (
    cost_table,
    decoding_table,
    exits_table,
    expected,
    grid_table,
    middle_table,
)
from benchmarks.reproduce.train import check_same
from configs.load import to_yaml
from inference.sweep.rows import COLUMNS, write_rows
from models.flops import layer_parameters
from tests.tiny import tiny_config


def _outcome(arm: str, seed: int, *, loss: float, speedup: float = 1.0) -> Outcome:
    last = {1: loss + 2, 2: loss + 1, 3: loss + 0.5, 4: loss + 0.01 * seed}
    drafts = {
        (e, k): Drafted(0.9 - 0.1 * k, speedup + 0.01 * e, True) for e in (1, 2) for k in (2,)
    }
    return Outcome(arm, seed, {10: last}, tokens_a_step=100, drafts=drafts)


OUTCOMES = [
    _outcome(arm.name, seed, loss=3.0 + 0.1 * i, speedup=1 + 0.1 * i)
    for i, arm in enumerate(ARMS)
    for seed in SEEDS
]
SHAPE = tiny_config()  # of 4 layers
LAYER = layer_parameters(SHAPE)
HEAD = SHAPE.vocab_size * SHAPE.hidden_size
FLOPS = {arm.name: 100.0 + i for i, arm in enumerate(ARMS)}


def _row(table: str, title: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {title} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_interval_is_student_s() -> None:
    found = mean([1.0, 2.0, 3.0])  # by hand: 2 ± 4.303 * 1 / sqrt(3)
    assert found.value == 2
    assert found.half == pytest.approx(2.484, abs=1e-3)
    assert not found.is_clear
    assert math.isinf(mean([1.0]).half)
    with pytest.raises(ValueError, match="got 0"):
        mean([])


def test_differences_are_of_the_same_seeds() -> None:
    found = difference([1.5, 2.5, 3.6], [1.0, 2.0, 3.0])
    assert found.value == pytest.approx(0.5333, abs=1e-4)
    assert found.is_clear  # although each of both varies by more than they differ


def test_perplexity_has_the_ends_of_the_loss() -> None:
    value, low, high = perplexity(mean([0.9, 1.0, 1.1]))
    assert (low, value, high) == pytest.approx(
        (math.exp(0.7516), math.e, math.exp(1.2484)), rel=1e-3
    )
    assert math.isinf(perplexity(mean([2.0]))[2])


def test_every_arm_and_seed_is_a_run_of_its_own() -> None:
    found = jobs(Path("runs/x"))
    assert len({job.folder for job in found}) == len(found) == len(ARMS) * len(SEEDS)
    plain = next(job.config for job in found if job.arm is PLAIN)
    assert plain.layer_dropout is None
    assert plain.exit_loss is None
    curricula = {
        job.arm.name: job.config.exit_loss.curriculum for job in found if job.config.exit_loss
    }
    assert curricula["both"] == "rotational"
    assert curricula["gradual"] == "gradual"
    assert curricula["all_exits"] == "all"


def test_some_arms_of_another_config_are_trained_and_tabled() -> None:
    quickstart = "configs/pretrain/quickstart.yaml"
    found = jobs(Path("runs/x"), path=quickstart, arms=named("both,plain"))
    assert [job.arm.name for job in found] == ["plain", "both"] * len(SEEDS)
    assert {job.config.model.num_hidden_layers for job in found if job.config.model} == {16}
    some = [each for each in OUTCOMES if each.arm in ("plain", "both")]
    for table in (exits_table(some), decoding_table(some, SHAPE), cost_table(some, FLOPS)):
        titles = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
        assert titles == ["plain", "both"]
    assert grid_table(some, SHAPE).splitlines()[0].count("|") == 5
    with pytest.raises(ValueError, match="neither is unknown; there are plain, dropout"):
        named("plain,neither")
    with pytest.raises(ValueError, match="plain, to compare with, is missing"):
        named("both")


def test_the_run_of_another_experiment_is_refused(tmp_path: Path) -> None:
    (job, *_), changed = jobs(tmp_path), jobs(tmp_path, ("optim.lr=1e-4",))[0]
    check_same(job.config)  # it is not there yet
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(to_yaml(job.config))
    check_same(job.config)
    with pytest.raises(ValueError, match=r"optim differs from .*seed_0/config\.yaml: give this"):
        check_same(changed.config)


def test_the_cost_of_a_part_is_beside_plain() -> None:
    row = _row(cost_table(OUTCOMES, FLOPS), "dropout only")
    assert row[2] == "**+0.100 ± 0.000**"
    assert row[5] == "1.01"
    assert _row(cost_table(OUTCOMES, FLOPS), "plain")[2] == "-"


def test_every_exit_has_its_perplexity() -> None:
    row = _row(exits_table(OUTCOMES), "both")
    assert len(row) == 5
    assert row[2].startswith(f"{math.exp(4.3):.1f}")


def test_the_middle_exit_is_compared_with_the_last_over_training() -> None:
    row = _row(middle_table(OUTCOMES), "plain")  # 1 nat, less 0, 0.01 and 0.02 by seed
    assert row[1] == "0.99 ± 0.02"
    assert "0.00M" in middle_table(OUTCOMES).splitlines()[0]


def test_the_best_setting_is_that_of_the_highest_mean_speedup() -> None:
    row = _row(decoding_table(OUTCOMES, SHAPE), "both")
    assert row[1] == "1, 2"  # both exits accept the same, so the one that reads less is best
    assert row[4:7] == ["2, 2", "0.70 ± 0.00", "1.32 ± 0.00"]  # but not by the clock
    assert row[7] == "yes"


def test_where_reading_is_the_limit_the_speedup_is_a_closed_form() -> None:
    by_hand = (1 + 0.7 * 2) * (4 * LAYER + HEAD) / ((2 * 2 + 4) * LAYER + (2 + 1) * HEAD)
    assert expected(SHAPE, (2, 2), Drafted(0.7, 9.9, True)) == pytest.approx(by_hand)
    assert f"0.70 {by_hand:.2f}x 1.02x" in grid_table(OUTCOMES, SHAPE)


def test_a_sweep_s_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    assert read_sweep(path) == {}
    values = dict.fromkeys(COLUMNS, "")
    values |= {"exit_layer": "2", "num_speculations": "4", "acceptance": "0.5", "speedup": "1.2"}
    write_rows(path, [values | {"same_output": "True"}])
    assert read_sweep(path) == {(2, 4): Drafted(0.5, 1.2, True)}


def test_tables_go_between_their_marks() -> None:
    page = "a\n<!-- reproduce: one -->\nold\n<!-- end -->\nb\n"
    new = marked(page, {"one": "| new |"})
    assert new == "a\n<!-- reproduce: one -->\n| new |\n<!-- end -->\nb\n"
    assert marked(new, {"one": "| new |"}) == new
    with pytest.raises(ValueError, match="two"):
        marked(page, {"one": "", "two": ""})
    assert marked(page, {}) == page


def test_words_are_options_or_overrides() -> None:
    options, overrides = parse(["folder=x", "steps=10", "at_once=1"])
    assert options == DEFAULTS | {"folder": "x", "at_once": "1"}
    assert overrides == ["steps=10"]
    for word in ("at_once=0", "exits=2,,3", "fuse=1"):
        with pytest.raises(ValueError, match=word):
            parse([word])
    with pytest.raises(ValueError, match="exits=2,8: the last of 8 layers is not"):
        main(["exits=2,8"])
    with pytest.raises(ValueError, match="at_once=0"):
        parse(["at_once=0"])
