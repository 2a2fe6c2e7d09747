import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference.__main__ import main, parse_generate

ROOT = Path(__file__).resolve().parents[3]


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "inference", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.e2e
def test_the_command_prints_nothing_but_json(exported: Path) -> None:
    done = _run(
        "generate", str(exported), "prompt=def f(x):", "config=configs/generate/sampling.yaml",
        "seed=3", "max_new_tokens=8", "output=json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["strategy"], values["num_speculations"]) == ("self_speculative", 4)
    assert 1 <= len(values["token_ids"]) <= 8


@pytest.mark.e2e
def test_a_mistake_is_one_line_and_an_exit_code(exported: Path) -> None:
    done = _run("generate", str(exported), "prompt=a", "strategy=early_exit", "exit_layer=9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: exit_layer must be in 1..3")
    assert done.stderr.count("\n") == 1


def test_a_file_is_overridden_by_the_command_line() -> None:
    file = str(ROOT / "configs" / "generate" / "self_speculative.yaml")
    config = parse_generate(["exit_layer=3", f"config={file}", "prompt=a=b"])
    assert (config.exit_layer, config.prompt) == (3, "a=b")
    assert config.strategy == "self_speculative"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "runs/x"], "unknown command 'decode': there are generate, verify, perp"),
        (["generate"], "no MODEL"),
        (["export", "runs/x"], "no FOLDER"),
        (["export", "runs/x", "folder", "dtype=int8"], "dtype"),
        (["generate", "prompt=a"], "no MODEL"),
        (["generate", "runs/x", "config=a.yaml", "config=b.yaml"], "config is given 2 times"),
        (["generate", "runs/x", "config=nothing.yaml"], "no config file nothing.yaml"),
        (["generate", "runs/x", "--fast"], "'--fast' is not an override"),
    ],
)
def test_a_command_that_cannot_be_read_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_a_missing_prompt_is_said_before_the_model_is_loaded() -> None:
    with pytest.raises(ValueError, match="there is no prompt"):
        main(["generate", "no/such/model"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "-h"]])
def test_help_names_every_key(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    shown = capsys.readouterr().out
    for key in ("prompt: str", "exit_layer: int", "compare: bool", "dtype: float32"):
        assert f"\n{key}" in shown
