import io
import json
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.__main__ import main
from inference.generation import Generation, Round
from inference.load import Loaded, load
from inference.measure.command import bench, parse_bench
from inference.measure.figures import acceptance_by_position, figures, speed, speedup
from inference.measure.memory import PeakMemory
from inference.measure.ways import Measured, Way, measure
from inference.prompt_sets.prompt import Prompt

PROMPTS = [Prompt("a", "def f", ("(x):",)), Prompt("b", "class A"), Prompt("c", "return x")]
DRAFTING = ["strategy=self_speculative", "exit_layer=2", "num_speculations=3"]
COMMON = ["prompts=x", "max_new_tokens=12", "stop_at_eos=false", "repeats=2"]


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


def _bench(loaded: Loaded, *overrides: str) -> str:
    out = io.StringIO()
    bench(*parse_bench([*COMMON, *overrides]), PROMPTS, loaded, out)
    return out.getvalue()


def _json(loaded: Loaded, *overrides: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_bench(loaded, *overrides, "output=json"))
    return found


def _generation(*rounds: tuple[int, int, int, float]) -> Generation:
    """Return one of (tokens, drafted, accepted, seconds) for each round."""
    return Generation(tuple(Round([5] * n, d, a, s) for n, d, a, s in rounds))


def _measured(repeats: Sequence[Sequence[Generation]], rows: int = 1) -> Measured:
    memory = PeakMemory(torch.device("cpu"))
    seconds = [sum(r.seconds for g in repeat for r in g.rounds) for repeat in repeats]
    way = Way("x", lambda _: [], rows)
    return Measured(way, memory, [list(each) for each in repeats], seconds)


def test_acceptance_by_position_looks_at_rounds_that_drafted_so_many() -> None:
    one = _generation((1, 0, 0, 1.0), (4, 3, 3, 1.0), (2, 3, 1, 1.0), (1, 1, 0, 1.0))
    assert acceptance_by_position([one]) == [2 / 3, 1 / 2, 1 / 2]
    assert acceptance_by_position([_generation((1, 0, 0, 1.0))]) == []


def test_speed_is_all_tokens_over_all_seconds_of_the_median_run_without_prefill() -> None:
    def run(slow: float) -> list[Generation]:
        return [
            _generation((1, 0, 0, 9.0), (4, 3, 3, slow)),
            _generation((1, 0, 0, 9.0), (2, 0, 0, 3.0)),
        ]

    measured = _measured([run(1.0), run(50.0), run(2.0)])
    found = speed(measured)
    assert found is not None
    assert found.value == pytest.approx(6 / (2 + 3))
    base = _measured(
        [[_generation((1, 0, 0, 9.0), (4, 0, 0, 8.0)), _generation((1, 0, 0, 0.1), (2, 0, 0, 6.0))]]
    )
    gain = speedup(measured, base)
    assert gain is not None
    assert gain.value == pytest.approx((6 / 5) / (6 / 14))
    assert figures(measured)["seconds_to_first_token"] == {"p50": 9.0, "p95": 9.0}


def test_batches_are_timed_by_the_clock() -> None:
    one = _generation((1, 0, 0, 2.0), (3, 0, 0, 2.0))
    measured = _measured([[one, one]], rows=2)
    measured.seconds = [5.0]
    found = speed(measured)
    assert found is not None
    assert (found.value, found.low, found.high) == (8 / 5, 8 / 5, 8 / 5)


def test_ways_take_turns_on_the_same_prompts_after_a_warm_up(loaded: Loaded) -> None:
    calls = list[str]()

    def way(name: str) -> Way:
        def run(prompts: Sequence[Sequence[int]]) -> list[Generation]:
            calls.extend(f"{name}{ids[0]}" for ids in prompts)
            return [_generation((1, 0, 0, 1.0)) for _ in prompts]

        return Way(name, run)

    found = measure([way("x"), way("y")], [[0], [1]], loaded, repeats=2)
    assert " ".join(calls) == "x0 y0 x0 y0 y1 x1 y0 x0 x1 y1"
    assert [[len(repeat) for repeat in each.repeats] for each in found] == [[2, 2], [2, 2]]


def test_everything_is_in_the_object(loaded: Loaded) -> None:
    found = _json(loaded, *DRAFTING)
    assert found["prompt_ids"] == ["a", "b", "c"]
    assert found["same_output"] is True
    plain, ours = found["ways"].values()
    assert list(found["ways"]) == ["autoregressive", "self_speculative, exit 2, 3 drafts"]
    assert plain["tokens"] == ours["tokens"] == 36
    assert (plain["acceptance"], plain["acceptance_by_position"], plain["speedup"]) == (
        None,
        [],
        None,
    )
    assert 0 <= ours["acceptance"]["low"] <= ours["acceptance"]["value"] <= 1
    assert len(ours["acceptance_by_position"]) == 3
    assert ours["speedup"]["value"] == pytest.approx(
        ours["tokens_per_second"]["value"] / plain["tokens_per_second"]["value"]
    )
    for column in (plain, ours):
        assert 0 < column["seconds_per_token"]["p50"] <= column["seconds_per_token"]["p95"]
        assert column["peak_memory_bytes"] > 10**7
        assert 0 <= column["rougeL"] <= column["rouge1"] <= 1  # of the one with a reference
    assert plain["rouge1"] == ours["rouge1"]


@pytest.mark.parametrize("way", [[], DRAFTING, ["strategy=early_exit", "exit_layer=2"]])
def test_batches_make_the_same_tokens(loaded: Loaded, way: list[str]) -> None:
    found = _json(loaded, *way, "batch_size=2")
    assert all(column["tokens"] == 36 for column in found["ways"].values())
    assert found["same_output"] == {0: None, 2: False, 3: True}[len(way)]
    assert "batches of 2: tokens/s count" in _bench(loaded, *way, "batch_size=2")


def test_the_same_sample_is_measured_for_every_setting(loaded: Loaded) -> None:
    keys = ["num_samples=2", "sample_seed=1", "repeats=1"]
    chosen = [_json(loaded, *keys, *way)["prompt_ids"] for way in ([], DRAFTING)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2


def test_the_table_has_a_column_for_each_way(loaded: Loaded) -> None:
    head, *rows = _bench(loaded, *DRAFTING).splitlines()
    assert head.split("  ")[-1] == "self_speculative, exit 2, 3 drafts"
    titles = [row.split("  ")[0] for row in rows]
    assert titles[:3] == ["tokens", "tokens/s", "speedup"]
    assert {"acceptance", "peak memory, MiB", "ROUGE-L", "exact match"} <= set(titles)
    assert rows[-1].startswith("3 prompts of x, float32 on cpu, runs: 2, medians")
    assert rows[-1].endswith("the same tokens")
    alone = _bench(loaded, *DRAFTING, "compare=false")
    assert "autoregressive" not in alone
    assert "speedup" not in alone


def test_acceptance_is_drawn(loaded: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    _bench(loaded, *DRAFTING, "repeats=1", f"picture={file}")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_sample=3"], "unknown key num_sample; did you mean num_samples"),
        (["exit_layers=3"], "unknown key exit_layers; did you mean exit_layer"),
        (["repeats=0"], "repeats must be at least 1, got 0"),
        (["picture=a.pdf", *DRAFTING], r"picture=a\.pdf must be a \.png file"),
        (["picture=a.png"], r"picture=a\.png would be empty with strategy=autoregressive"),
        (["prompt=a"], "prompt and prompts are both set"),
        (["exit_layer=2"], "exit_layer=2 would be ignored with strategy=autoregressive"),
        (["ranks=data"], "ranks=data: measuring works in one process"),
        (["num_samples=0"], "num_samples must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_bench([*COMMON[:1], *overrides])


def test_prompts_are_looked_at_before_the_model() -> None:
    with pytest.raises(ValueError, match=r"prompts=no\.txt: there is no such file"):
        main(["bench", "no/such/model", "prompts=no.txt"])
    with pytest.raises(ValueError, match="required key prompts is missing"):
        main(["bench", "no/such/model"])


def test_an_exit_that_the_model_does_not_have_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3"):
        _bench(loaded, "strategy=self_speculative", "exit_layer=9")


def test_peak_memory_sees_what_came_and_went() -> None:
    peak = PeakMemory(torch.device("cpu"))
    peak.begin()
    peak.end()
    before = peak.bytes
    peak.begin()
    with mmap(-1, 64 * 2**20) as fresh:  # an allocator might hand out what it still has
        for page in range(0, len(fresh), 4096):
            fresh[page] = 1
    peak.end()
    assert peak.bytes >= before + 60 * 2**20
