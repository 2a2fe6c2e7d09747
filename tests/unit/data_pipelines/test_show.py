from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.__main__ import main
from data_pipelines.show import BatchSizes, ShowConfig, show
from tests.streams import data_config, mixed_config, write_documents, write_questions


def config(folder: Path, **changes: Any) -> ShowConfig:
    settings: dict[str, Any] = {
        "data": mixed_config(folder, seq_len=64, cross_document_attention=False),
        "batch": BatchSizes(global_size=8, micro_size=2),
        "step": 3,
        "rank": 1,
        "world": 2,
    }
    return ShowConfig(**(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown")


def test_it_says_what_is_shown_and_where_each_sequence_is_from(folder: Path) -> None:
    lines = list(show(config(folder), colour=False))
    assert lines[0].startswith("step 3, rank 1 of 2: microbatches 1, 3 of 4, 2 sequences of 64")
    assert [line.split(":")[0] for line in lines[1:4]] == [
        "source books",
        "source maths",
        "source web",
    ]
    headings = [line for line in lines if line.startswith("== ")]
    assert len(headings) == 4
    assert {line.split(",")[0] for line in headings} == {"== microbatch 1", "== microbatch 3"}
    assert all("source " in line for line in headings)


def test_a_prompt_is_marked_and_padding_is_not_spelt(folder: Path) -> None:
    text = "\n".join(show(config(folder, world=1, rank=0, most=8), colour=False))
    assert "«Question: What is " in text
    assert ": padding" in text
    answer = text.split("Answer:»")[1].split("</s>")[0]
    assert "«" not in answer
    assert "####" in answer


def test_a_terminal_gets_colour_instead_of_marks(folder: Path) -> None:
    text = "\n".join(show(config(folder, world=1, rank=0, most=8), colour=True))
    assert "«" not in text
    assert "\033[2mQuestion: What is " in text


def test_more_than_is_asked_for_is_counted(folder: Path) -> None:
    assert list(show(config(folder, most=1), colour=False))[-1].endswith(
        "3 more sequences of this rank: most=4 shows all"
    )


def test_a_plain_source_is_shown_too(tmp_path: Path) -> None:
    lines = list(show(config(tmp_path, data=data_config(tmp_path)), colour=False))
    assert any("source source: 100.00%" in line for line in lines)
    assert any(line.strip().startswith("«") for line in lines)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rank": 2}, "rank=2 is not one of world=2 ranks"),
        ({"world": 3, "rank": 0}, "world=3 ranks cannot share the 4 microbatches"),
        ({"step": -1}, "step must be at least 0, got -1"),
    ],
)
def test_a_rank_that_there_is_not_is_refused(
    folder: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(folder, **changes)


def test_the_command_reads_a_trainers_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web = write_documents(tmp_path / "web", files=2, rows=40)
    maths = write_questions(tmp_path / "maths.jsonl", rows=60)
    content = {
        "run_folder": "runs/x",
        "steps": 7,
        "optim": {"lr": 1},
        "seed": 3,
        "batch": {"global_size": 4, "micro_size": 2},
        "data": {
            "mixture": {
                "web": {"weight": 2, "files": {"path": str(web), "streaming": True}},
                "maths": {"weight": 1, "files": {"path": str(maths), "format": "gsm8k"}},
            },
            "tokenizer": {"sentencepiece": {"vocab_size": 300}},
            "seq_len": 64,
            "valid_fraction": 0.2,
            "cache_folder": str(tmp_path / "cache"),
            "num_processes": 1,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    main(["show", str(path), "step=2", "rank=1", "world=2", "data.mixture.web.weight=3"])
    text = capsys.readouterr().out
    assert text.startswith("step 2, rank 1 of 2: microbatches 1 of 2")
    assert "source web: 75.00% of the sequences" in text
    main(["prepare", str(path)])
    assert capsys.readouterr().out.startswith("split")
    with pytest.raises(ValueError, match="must be a multiple of"):
        main(["show", str(path), "batch.global_size=5"])
