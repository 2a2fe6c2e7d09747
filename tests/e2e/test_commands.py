import csv
import io
import json
from pathlib import Path

import pytest

from inference.__main__ import main
from tests.e2e.runs import train, write_config
from tests.ranks import RankError, run_ranks

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured_run")
    train([str(write_config(folder))])
    rows = [
        {"article": f"def f{n}(x):\n", "highlights": f"    return x * {n}", "id": str(n)}
        for n in range(6)
    ]
    with (folder / "news.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _run(folder: Path, command: str, *keys: str) -> None:
    prompts = [] if command in ("generate", "exits") else [f"prompts=cnn_dm:{folder / 'news.csv'}"]
    main([command, str(folder / "run"), *prompts, "max_new_tokens=12", *keys])


def test_a_trained_run_is_measured_on_a_data_set(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["strategy=self_speculative", "exit_layer=2", "num_samples=3", "repeats=1"]
    _run(folder, "bench", *keys, "output=json")
    found = json.loads(capsys.readouterr().out)
    assert found["num_prompts"] == 3
    assert found["same_output"] is True
    assert all(0 <= column["rouge1"] <= 1 for column in found["ways"].values())


def test_a_sweep_of_a_trained_run_goes_on_where_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        f"to={folder / 's.csv'}",
        "num_samples=2",
        "num_speculations=[2,3]",
        "stop_at_eos=false",
    ]
    _run(folder, "sweep", *keys, "exit_layer=[1]")
    _run(folder, "sweep", *keys, "exit_layer=[1,2]")
    with (folder / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["exit_layer"] for row in rows] == ["1", "1", "2", "2"]
    assert {row["same_output"] for row in rows} == {"True"}
    assert (folder / "s.png").is_file()
    with pytest.raises(ValueError, match="row 1: samples was"):
        _run(folder, "sweep", *keys, "exit_layer=[1,2]", "num_samples=3")
    assert "4 settings in" in capsys.readouterr().out


def test_what_was_tuned_is_used_from_then_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(folder, "tune", "num_samples=2", "stop_at_eos=false", "exit_layer=[1,2]")
    tuned = json.loads((folder / "run" / "decoding.json").read_text())["decoding"]
    capsys.readouterr()
    _run(folder, "generate", "prompt=def f(x):", "output=json")
    values = json.loads(capsys.readouterr().out)
    assert {name: values[name] for name in tuned} == tuned
    monkeypatch.setattr("sys.stdin", io.StringIO("def f\nclass A\n"))
    _run(folder, "generate", "interactive=true")
    assert capsys.readouterr().err.count(" tokens/s, prefill ") == 2


@pytest.mark.ranks
@pytest.mark.parametrize("command", ["bench", "generate"])
def test_what_works_in_one_process_is_refused_by_several(folder: Path, command: str) -> None:
    keys = ["bench", str(folder / "run"), f"prompts=cnn_dm:{folder / 'news.csv'}"]
    if command == "generate":
        keys = ["generate", str(folder / "run"), "interactive=true"]
    with pytest.raises(RankError, match="in one process: start it without torchrun"):
        run_ranks(main, keys, world=2)


def test_the_exits_of_a_text_are_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(folder, "exits", "prompt=def f(x):", f"picture={folder / 'exits.png'}")
    assert "tokens, on average predicted by exit" in capsys.readouterr().out
    assert (folder / "exits.png").read_bytes().startswith(b"\x89PNG")
