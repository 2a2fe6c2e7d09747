import json
import os
import socket
from pathlib import Path

import pytest

from configs.load import load
from models.hf_config import config_to_hf
from tests.e2e.runs import train, write_config
from tests.ranks import RankError, run_ranks
from tests.tiny import tiny_config
from trainer import build
from trainer.__main__ import main
from trainer.config import PretrainConfig
from trainer.run_folder import claim

pytestmark = pytest.mark.e2e


def refusal(arguments: list[str]) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    assert "did you mean layer_dropout.max_prob?" in refusal([path, "layer_dropout.max_prb=0.1"])


def test_a_missing_config_is_named() -> None:
    assert "no config file configs/pretrain/quikstart.yaml" in refusal(
        ["configs/pretrain/quikstart.yaml"]
    )


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    assert "unknown option --chek" in refusal([str(write_config(tmp_path)), "--chek"])


def test_a_model_or_init_from_has_to_be_given(tmp_path: Path) -> None:
    path = str(write_config(tmp_path, model=None))
    assert "give model" in refusal([path, "--check"])


def test_a_shape_that_the_model_to_go_on_from_has_not_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(tiny_config(), dtype="float32")))
    path = str(write_config(tmp_path, init_from=str(folder)))
    main([path, "--check"])  # which believes what it is told
    with pytest.raises(RankError, match=r"model\.vocab_size is 320 but 96 in init_from"):
        train([path], ranks=1)


def test_a_rotation_without_rotational_curriculum_is_refused(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    message = refusal([path, "exit_loss.curriculum=all", "--check"])
    assert "exit_loss.rotation 2 has no effect" in message


def test_a_sequence_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    assert "data.seq_len 65 is longer" in refusal([path, "data.seq_len=65", "--check"])


def rank_refusal(arguments: list[str], ranks: int) -> str:
    with pytest.raises(RankError) as error:
        train(arguments, ranks=ranks)
    return str(error.value).strip().splitlines()[-1]


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    message = rank_refusal([str(write_config(tmp_path)), "batch.global_size=12"], 2)
    assert "makes 3, which 2 ranks cannot share equally" in message


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = str(write_config(tmp_path))
    message = rank_refusal([path, f"data.source.files.path={tmp_path / 'empty'}"], 1)
    assert message.startswith("ValueError")
    assert str(tmp_path / "empty") in message


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    message = rank_refusal([str(write_config(tmp_path)), "model.vocab_size=200"], 1)
    assert "model.vocab_size 200 is smaller than the tokenizer's 300" in message


def times(run: Path) -> list[int]:
    """Return when everything was written last, but the lock, which says who holds it."""
    return sorted(p.stat().st_mtime_ns for p in run.rglob("*") if p.name != "lock")


def test_a_run_is_not_resumed_as_another_model(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    train([path, "steps=3"], ranks=1)
    before = times(tmp_path / "run")
    message = rank_refusal([path, "model.hidden_size=64"], 1)
    assert "model differs from" in message
    assert "choose another run_folder" in message
    assert before == times(tmp_path / "run")


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    train([path, "steps=3"], ranks=1)
    (tmp_path / "text" / "0.py").write_text("another text\n" * 100)
    assert "the data changed since" in rank_refusal([path, "steps=3"], 1)


def test_training_without_held_out_documents_is_refused(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    assert "data.valid_fraction is 0" in refusal([path, "data.valid_fraction=0", "--check"])


def test_a_run_folder_says_what_the_last_start_was_told(tmp_path: Path) -> None:
    path = str(write_config(tmp_path, checkpoint={"every": 100}))
    with pytest.raises(RankError):  # a first try, which ends before its first checkpoint
        train([path, "batch.micro_size=8", "optim.lr=1e30", "steps=5"], ranks=1)
    for steps in (3, 4):
        train([path, f"steps={steps}", f"optim.lr=0.0{steps}"], ranks=1)
        run = tmp_path / "run"
        for told in (run, run / "checkpoints" / f"step_{steps:08}"):
            config = load(PretrainConfig, told / "config.yaml")
            assert (config.steps, config.optim.lr) == (steps, steps / 100)
            assert config.batch.micro_size == 4


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    with claim(load(PretrainConfig, path)):
        message = rank_refusal([path], 1)
    assert f"process {os.getpid()} on {socket.gethostname()} is training in run_folder" in message


def test_resume_never_does_not_touch_a_run(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    train([path, "steps=3"], ranks=1)
    assert "resume is never" in rank_refusal([path, "resume=never"], 1)


def test_help_and_check_answer_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--help"])
    assert "layer_dropout.max_prob" in capsys.readouterr().out
    main([str(write_config(tmp_path)), "--check"])
    report = capsys.readouterr().out
    for part in ("parameters:", "memory estimate", "learning", "exits and weights"):
        assert part in report or part == "learning"
    assert not (tmp_path / "run").exists()


def _start_differently(of_rank: list[list[str]]) -> None:
    main(of_rank[int(os.environ["RANK"])])


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("optim.lr=0.02", r"optim\.lr is 0\.02 there but 0\.01 on rank 0"),
        ("data.seq_len=16", r"data\.seq_len is 16 there but 32 on rank 0"),
        ("layer_dropout=null", r"layer_dropout\.max_prob is None there but 0\.5 on rank 0 \(and "),
        ("steps=13", r"steps is 13 there but 12 on rank 0"),
    ],
)
def test_a_rank_started_with_another_config_is_named(
    tmp_path: Path, change: str, difference: str
) -> None:
    path = str(write_config(tmp_path))
    with pytest.raises(RankError, match=f"rank 1 was started with another config .*{difference}"):
        run_ranks(_start_differently, [[path], [path, change]])
    assert not (tmp_path / "run").exists()


def _without_checkpoints(arguments: list[str]) -> None:
    """In a rank: as on a node that does not share the folder of the run."""
    if os.environ["RANK"] == "1":
        build.latest = lambda folder: None
    main(arguments)


def test_a_rank_that_sees_other_data_or_checkpoints_is_named(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    train([path, "steps=3"])
    with pytest.raises(RankError, match="rank 1 was started with another data than rank 0: newest"):
        run_ranks(_without_checkpoints, [path, "steps=3"])
