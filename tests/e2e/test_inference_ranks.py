"""`python -m inference` on several ranks: as torchrun starts it, and in forks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.command import ROOT
from inference.__main__ import main
from tests.distributed.decoding import export, make_tokenizer, quiet_llama
from tests.ranks import RankError, run_ranks
from tests.tiny import tiny_config

pytestmark = pytest.mark.e2e

DRAFTING = ["strategy=self_speculative", "exit_layer=2", "num_speculations=3"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    export(quiet_llama(tiny_config(vocab_size=290)), folder / "model")
    make_tokenizer(folder / "tokenizer")
    shutil.copytree(folder / "tokenizer", folder / "model", dirs_exist_ok=True)
    (folder / "prompts.txt").write_text("def f(x):\nclass A: pass, and so on\nreturn\n")
    return folder


def _arguments(folder: Path, command: str, *overrides: str) -> list[str]:
    prompts = f"prompts={folder / 'prompts.txt'}"
    return [
        command,
        str(folder / "model"),
        prompts,
        "max_new_tokens=8",
        "dtype=float64",
        *overrides,
    ]


def _objects(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [{k: v for k, v in each.items() if "second" not in k} for each in lines]


@pytest.mark.parametrize("way", [[], DRAFTING], ids=["plain", "drafting"])
@pytest.mark.parametrize("ranks", [["ranks=tensor"], ["ranks=data", "batch_size=2"]])
def test_rank_0_alone_writes_what_one_process_writes(
    folder: Path, capfd: Capture, way: list[str], ranks: list[str]
) -> None:
    arguments = _arguments(folder, "generate", "output=json", *way)
    main([*arguments, *ranks[1:]])
    expected = _objects(capfd.readouterr().out)
    assert len(expected) == 3
    run_ranks(main, [*arguments, *ranks], world=2)
    assert _objects(capfd.readouterr().out) == expected


def test_text_streams_from_rank_0_alone(folder: Path, capfd: Capture) -> None:
    main(_arguments(folder, "generate"))
    expected = capfd.readouterr().out
    run_ranks(main, _arguments(folder, "generate"), world=2)
    assert capfd.readouterr().out == expected


@pytest.mark.parametrize("sampling", [[], ["temperature=1", "seeds=50", "max_new_tokens=2"]])
def test_ranks_certify_their_own_decoding(
    folder: Path, capfd: Capture, sampling: list[str]
) -> None:
    (folder / "one.txt").write_text("def f(x):\n")
    settings = [f"prompts={folder / 'one.txt'}", "exit_layer=2", "num_speculations=2", *sampling]
    run_ranks(main, _arguments(folder, "verify", *settings), world=2)
    out = capfd.readouterr().out
    assert out.count("prompts: 1, ") == 1
    assert out.endswith(" 0 fault\n")


def test_every_exit_has_the_perplexity_of_one_process(folder: Path, capfd: Capture) -> None:
    model, texts = str(folder / "model"), f"texts={folder / 'prompts.txt'}"
    arguments = ["perplexity", model, texts, "output=json", "dtype=float64"]
    main(arguments)
    expected = _objects(capfd.readouterr().out)
    run_ranks(main, arguments, world=2)
    for ours, theirs in zip(_objects(capfd.readouterr().out), expected, strict=True):
        assert ours == {**theirs, **{k: pytest.approx(theirs[k]) for k in ("loss", "perplexity")}}


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        ([], 3, "3 ranks cannot share 4 query and 2 key-value heads: start 1, 2, 4 ranks"),
        (["ranks=data"], 2, "ranks=data continues prompts at once, which text cannot show"),
        (["reshard_after_forward=false"], 2, "reshard_after_forward=false would be ignored"),
        (["ranks=data", "output=json", "max_new_tokens=999"], 2, "the model's context is 256"),
    ],
)
def test_what_ranks_cannot_do_is_refused(
    folder: Path, capfd: Capture, overrides: list[str], world: int, message: str
) -> None:
    with pytest.raises(RankError, match=message):
        run_ranks(main, _arguments(folder, "generate", *overrides), world=world)
    assert capfd.readouterr().out == ""


def test_data_needs_ranks(folder: Path) -> None:
    with pytest.raises(ValueError, match="ranks=data shares prompts among ranks, and there is one"):
        main(_arguments(folder, "generate", "ranks=data", "output=json"))


def _other_prompts(folder: str) -> None:
    rank = int(os.environ["RANK"])
    file = Path(folder) / f"prompts_{rank}.txt"
    file.write_text(f"prompt {rank}")
    main(["generate", f"{folder}/model", f"prompts={file}", "max_new_tokens=8"])


def test_ranks_that_were_told_different_things_stop_before_any_compute(folder: Path) -> None:
    with pytest.raises(RankError, match="settings or texts differ on rank 1 from those of rank 0"):
        run_ranks(_other_prompts, str(folder), world=2)


def _torchrun(arguments: list[str], ranks: int = 2) -> "subprocess.CompletedProcess[str]":
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "inference", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_torchrun_starts_it(folder: Path, capfd: Capture) -> None:
    arguments = _arguments(folder, "generate", "output=json", "ranks=data", *DRAFTING)
    main([each for each in arguments if each != "ranks=data"])
    expected = _objects(capfd.readouterr().out)
    done = _torchrun(arguments)
    assert done.returncode == 0, done.stderr
    assert _objects(done.stdout) == expected
