import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference.__main__ import main
from inference.identity import Identity
from inference.load import Loaded, load
from inference.prompt_sets.prompt import Prompt
from inference.sweep.command import parse_sweep, sweep
from inference.sweep.config import default_exits
from inference.sweep.rows import COLUMNS

PROMPTS = [Prompt("a", "def f"), Prompt("b", "class A")]
IDENTITY = Identity("model", "123", "float64", "cpu")
KEYS = ["prompts=x", "max_new_tokens=10", "stop_at_eos=false"]


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


def _sweep(
    loaded: Loaded, to: Path, *overrides: str, identity: Identity = IDENTITY
) -> tuple[str, list[dict[str, str]]]:
    out = io.StringIO()
    config, decoding = parse_sweep([*KEYS, f"to={to}", *overrides])
    sweep(config, decoding, PROMPTS, loaded, identity, out)
    with to.open(newline="") as file:
        return out.getvalue(), list(csv.DictReader(file))


def test_every_setting_has_a_row_and_the_grid_a_picture(loaded: Loaded, tmp_path: Path) -> None:
    to = tmp_path / "out" / "s.csv"
    text, rows = _sweep(loaded, to, "exit_layer=[3,1]", "num_speculations=[2,4]")
    assert [(row["exit_layer"], row["num_speculations"]) for row in rows] == [
        ("3", "2"), ("3", "4"), ("1", "2"), ("1", "4"),
    ]  # fmt: skip
    for row in rows:
        assert tuple(row) == COLUMNS
        assert row["same_output"] == "True"
        assert 0 <= float(row["acceptance"]) <= 1
        low, value, high = (float(row[f"speedup{end}"]) for end in ("_low", "", "_high"))
        assert 0 < low <= value <= high
        assert value == pytest.approx(
            float(row["tokens_per_second"]) / float(row["autoregressive_tokens_per_second"]),
            rel=1e-4,
        )
        assert (row["model"], row["tokens"]) == ("model", "20")
    assert to.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert text.count("*") == 1
    assert text.endswith(f"4 settings in {to}, drawn in {to.with_suffix('.png')}\n")


def test_rows_that_are_there_are_kept_and_the_others_measured(
    loaded: Loaded, tmp_path: Path
) -> None:
    to = tmp_path / "s.csv"
    _, first = _sweep(loaded, to, "exit_layer=[1]", "num_speculations=[2,4]")
    _, both = _sweep(loaded, to, "exit_layer=[1,2]", "num_speculations=[4]")
    assert both[:2] == first
    assert [(row["exit_layer"], row["num_speculations"]) for row in both[2:]] == [("2", "4")]
    content = to.read_bytes()
    text, _ = _sweep(loaded, to, "exit_layer=[1]", "num_speculations=[2,4]")
    assert to.read_bytes() == content
    assert f"{float(first[0]['speedup']):.2f}x" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["max_new_tokens=9"], "settings was 'max_new_tokens=10 .* now it is 'max_new_tokens=9"),
        (["num_samples=1"], "samples was"),
        (["repeats=2"], "settings was .*repeats=1', now it is .*repeats=2'"),
        (["temperature=0.5"], "settings was"),
    ],
)
def test_a_file_of_other_settings_is_left_alone(
    loaded: Loaded, tmp_path: Path, change: list[str], message: str
) -> None:
    to = tmp_path / "s.csv"
    grid = ["exit_layer=[1]", "num_speculations=[2]"]
    _sweep(loaded, to, *grid)
    content = to.read_bytes()
    with pytest.raises(ValueError, match=f"row 1: {message}"):
        _sweep(loaded, to, *grid, *change)
    assert to.read_bytes() == content


def test_a_file_of_another_model_is_left_alone(loaded: Loaded, tmp_path: Path) -> None:
    to = tmp_path / "s.csv"
    grid = ["exit_layer=[1]", "num_speculations=[2]"]
    _sweep(loaded, to, *grid)
    other = Identity("model", "456", "float64", "cpu")
    with pytest.raises(ValueError, match="weights was '123', now it is '456'"):
        _sweep(loaded, to, *grid, identity=other)


def test_a_file_that_is_no_sweep_is_left_alone(loaded: Loaded, tmp_path: Path) -> None:
    to = tmp_path / "s.csv"
    to.write_text("name,age\nx,3\n")
    with pytest.raises(ValueError, match=r"s\.csv is not a sweep's file: name another one"):
        _sweep(loaded, to, "exit_layer=[1]")
    assert to.read_text() == "name,age\nx,3\n"


def test_exits_are_spread_over_the_depth() -> None:
    assert default_exits(32) == (4, 8, 12, 16, 20, 24)
    assert default_exits(4) == (1, 2, 3)
    assert default_exits(2) == (1,)
    assert default_exits(1) == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["to=a.txt"], r"to=a\.txt must be a \.csv file"),
        (["to=a.csv", "picture=a.svg"], r"picture=a\.svg must be a \.png file"),
        (["to=a.csv", "exit_layer=[0,2]"], r"exit_layer=\[0, 2\]: each must be at least 1"),
        (["to=a.csv", "num_speculations=[2,2]"], r"\[2, 2\]: one is there twice"),
        (["to=a.csv", "num_speculations=[]"], "num_speculations is empty"),
        (["to=a.csv", "strategy=early_exit"], "strategy=early_exit needs"),
        (["to=a.csv", "strategy=self_speculative", "skip_layers=[1]"], "against plain decoding"),
        (["to=a.csv", "max_new_tokens=1"], "max_new_tokens=1 leaves nothing to measure"),
        ([], "required key to is missing"),
    ],
)
def test_what_cannot_be_swept_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sweep(["prompts=x", *overrides])


def test_prompts_are_looked_at_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts=no\.txt: there is no such file"):
        main(["sweep", "no/such/model", "prompts=no.txt", f"to={tmp_path / 'a.csv'}"])


def test_an_exit_that_the_model_does_not_have_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3"):
        _sweep(loaded, tmp_path / "a.csv", "exit_layer=[2,7]")
    assert not list(tmp_path.iterdir())


def test_prompts_that_end_at_once_have_no_rate(loaded: Loaded, tmp_path: Path) -> None:
    every = replace(loaded, eos_ids=frozenset(range(300)))
    settings = ["exit_layer=[1]", "num_speculations=[2]", "stop_at_eos=true"]
    with pytest.raises(RuntimeError, match="ended with its first tokens"):
        _sweep(every, tmp_path / "a.csv", *settings)
    assert not list(tmp_path.iterdir())
