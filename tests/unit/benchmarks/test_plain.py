import io
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import plain
from benchmarks.peers import environments
from benchmarks.peers.case import NUM_BATCHES, Case, Precision, batches
from benchmarks.peers.ours import main as trainer_of
from benchmarks.peers.pool import (
    OURS,
    ROUNDS,
    STEPS,
    Key,
    Measured,
    Started,
    disagreement,
    take_turns,
)
from benchmarks.peers.turns import Turns
from benchmarks.peers.worker import last_line
from benchmarks.timing import Timings
from parallel.world import start, stop
from tests.tiny import tiny_config


@pytest.fixture
def case(tmp_path: Path) -> Case:
    plain.export(tiny_config(), tmp_path / "weights")
    return Case(
        model=asdict(tiny_config()),
        weights=str(tmp_path / "weights"),
        rows=2,
        seq_len=8,
        precision="float32",
        compile=False,
        scratch=str(tmp_path),
    )


@pytest.fixture
def train() -> Iterator[Callable[[Case, Turns], None]]:
    yield trainer_of(start(device="cpu"))
    stop()


def turns_of(*orders: dict[str, Any]) -> tuple[Turns, Callable[[], list[dict[str, Any]]]]:
    answers = io.StringIO()
    turns = Turns(io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), answers)
    return turns, lambda: [json.loads(line) for line in answers.getvalue().splitlines()]


def started(*losses: float, parameters: int = 10) -> Started:
    return Started(
        parameters=parameters,
        weights="float32",
        moments="float32",
        losses=losses,
        first_step_seconds=1.0,
    )


def measured(*seconds: float) -> Measured:
    return Measured(started=started(9.0), timings=Timings(seconds, seconds), operators=())


def test_only_the_two_known_words_are_taken() -> None:
    assert plain.parse(["profile"]) == (False, True)
    assert plain.parse(["compile", "profile"]) == (True, True)
    with pytest.raises(ValueError, match="argument compiled is neither"):
        plain.parse(["compiled"])


def test_every_side_gets_the_same_batches_and_each_step_another(case: Case) -> None:
    first, again = batches(case), batches(case)
    assert len(first) == NUM_BATCHES
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (2, 8)


def test_our_loss_is_the_one_that_hugging_face_takes_of_the_same_ids(
    case: Case, train: Callable[[Case, Turns], None]
) -> None:
    turns, answers = turns_of({"steps": 1}, {"steps": 0})
    train(case, turns)
    model = LlamaForCausalLM.from_pretrained(case.weights)
    ids = batches(case)[0]
    theirs = model(ids, labels=ids).loss.item()
    assert answers()[1]["losses"] == [pytest.approx(theirs, rel=1e-6)]
    assert answers()[0]["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_side_answers_once_an_order_and_stops_when_told(
    case: Case, train: Callable[[Case, Turns], None]
) -> None:
    turns, answers = turns_of({"steps": 2}, {"steps": 1, "profile": True}, {"steps": 0})
    train(case, turns)
    built, two, one = answers()
    assert built["weights"] == built["moments"] == "float32"
    assert len(two["losses"]) == 2
    assert two["profile"] == []
    assert two["wall"] > 0 < two["cpu"]
    assert "aten::mm" in [name for name, _, _ in one["profile"]]


def test_a_side_whose_line_is_closed_stops(
    case: Case, train: Callable[[Case, Turns], None]
) -> None:
    turns, answers = turns_of()
    train(case, turns)
    assert len(answers()) == 1
    assert turns.next_case() is None


def test_a_case_survives_the_way_to_another_process(case: Case) -> None:
    turns, _ = turns_of(asdict(case))
    assert turns.next_case() == case


def test_sides_take_turns_and_every_second_round_goes_backwards() -> None:
    order: list[Key] = []

    def runs(key: Key) -> Callable[[int], dict[str, Any]]:
        def run(steps: int) -> dict[str, Any]:
            order.append(key)
            return {"wall": 3.0 * steps, "cpu": 5.0 * steps}

        return run

    keys: list[Key] = [(OURS, "float32"), ("litgpt", "float32")]
    found = take_turns({key: runs(key) for key in keys})
    assert order[:4] == [keys[0], keys[1], keys[1], keys[0]]
    assert found[keys[0]] == Timings((3.0,) * ROUNDS, (5.0,) * ROUNDS)
    assert STEPS > 0


@pytest.mark.parametrize(
    ("theirs", "precision", "reason"),
    [
        (started(9.0, 8.0), "float32", None),
        (started(9.01, 8.0), "mixed", None),
        (started(9.01, 8.0), "float32", "loss 9.010000 at step 0, ours is 9.000000"),
        (started(9.0, float("nan")), "pure", "loss nan at step 1, ours is 8.000000"),
        (started(9.0, 8.0, parameters=9), "pure", "has 9 parameters, we have 10"),
    ],
)
def test_a_side_that_trains_something_else_is_found_out(
    theirs: Started, precision: Precision, reason: str | None
) -> None:
    assert disagreement(theirs, started(9.0, 8.0), precision) == reason


def test_a_failed_side_has_a_row_with_its_reason() -> None:
    found: dict[Key, Measured] = {
        (OURS, "mixed"): measured(1.0, 1.0),
        ("litgpt", "pure"): measured(1.2, 1.4),
    }
    failed: dict[Key, str] = {("torchtune", "pure"): "it cannot be installed"}
    rows = plain.rows_of(plain.SHAPES[0], "bfloat16", False, found, failed)
    assert [row["side"] for row in rows] == [OURS, "litgpt", "torchtune"]
    assert rows[1]["ours_over_it_wall"].startswith("1.300")
    assert (rows[2]["note"], rows[2]["tokens_per_second"]) == ("it cannot be installed", "")
    assert all(set(plain.COLUMNS) <= set(row) for row in rows)


def test_the_best_peer_is_the_one_that_we_are_least_ahead_of_in_the_same_rounds() -> None:
    found: dict[Key, Measured] = {
        (OURS, "mixed"): measured(1.0, 5.0, 1.0),
        ("hf_trainer", "mixed"): measured(1.9, 5.5, 2.0),
        ("litgpt", "pure"): measured(1.5, 9.0, 1.5),
    }
    assert plain.best_peer(found, "wall") == ("litgpt", "pure")
    assert plain.best_peer({(OURS, "mixed"): measured(1.0)}, "wall") is None


def test_every_side_has_a_case_in_every_family_and_ours_is_first(tmp_path: Path) -> None:
    for family in plain.PRECISIONS:
        cases = plain.cases_of(plain.SHAPES[0], family, tmp_path / "weights", compiled=True)
        assert next(iter(cases))[0] == OURS
        assert {side for side, _ in cases} == {OURS, *environments.REQUIREMENTS}
        assert all(case.compile for case in cases.values())
        assert len({case.scratch for case in cases.values()}) == len(cases)


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    here = tmp_path / "litgpt"
    here.mkdir()
    stamp = {
        "base": sysconfig.get_paths()["purelib"],
        "requirements": environments.REQUIREMENTS["litgpt"],
    }
    (here / environments.STAMP).write_text(json.dumps(stamp))
    assert environments.environment("litgpt", tmp_path) == here / "bin" / "python"
    assert [file.name for file in here.iterdir()] == [environments.STAMP]


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "absent-1.0-py3-none-any.whl"
    monkeypatch.setitem(environments.REQUIREMENTS, "absent", (str(wheel),))
    with pytest.raises(RuntimeError, match=r"pip could not install absent: ERROR: .*absent-1\.0"):
        environments.environment("absent", tmp_path)
    assert not (tmp_path / "absent" / environments.STAMP).exists()


def test_the_last_words_of_a_process_are_its_last_line_that_is_not_empty() -> None:
    assert last_line("a warning\nImportError: no x \n\n") == "ImportError: no x"
    assert last_line("\n") == "it stopped without a word"


def test_a_profile_shows_milliseconds_and_shares() -> None:
    side = Measured(
        started=started(9.0),
        timings=Timings((1.0,), (1.0,)),
        operators=(("aten::mm", 171.0, 0.75), ("aten::mul", 3.0, 0.25)),
    )
    assert plain.operators_table(side).splitlines()[2:] == [
        "| mm       | 171   | 750 | 75%   |",
        "| mul      | 3     | 250 | 25%   |",
    ]
