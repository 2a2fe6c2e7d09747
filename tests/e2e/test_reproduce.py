from pathlib import Path

import pytest

from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.arms import ARMS, SEEDS
from benchmarks.reproduce.gather import SWEEP

SMALL = (
    "steps=4",
    "schedule.warmup_steps=0",
    "model.vocab_size=512",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "data.source.stdlib.max_megabytes=1.0",
    "data.tokenizer.sentencepiece.vocab_size=500",
    "data.seq_len=64",
    "data.valid_fraction=0.4",
    "validate.every=2",
    "validate.sequences=8",
    "checkpoint.every=4",
)


@pytest.mark.slow  # 18 trainings and as many sweeps
def test_all_of_it_runs_and_goes_on_from_what_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    names = ("cost", "exits", "curricula", "middle", "decoding", "grid")
    page.write_text("".join(f"<!-- reproduce: {name} --><!-- end -->\n" for name in names))
    folder = tmp_path / "reproduce"
    words = [f"folder={folder}", f"page={page}", f"data.cache_folder={tmp_path / 'data'}", *SMALL]
    main(words)
    said = page.read_text()
    assert sum(line.startswith("| plain ") for line in said.splitlines()) == 4
    assert {path.name for path in page.parent.glob("*.png")} == {
        "results_exits.png",
        "results_middle.png",
        "results_decoding.png",
    }
    runs = [folder / arm.name / f"seed_{seed}" for arm in ARMS for seed in SEEDS]
    written = {run: (run / SWEEP).read_text() for run in runs}
    capfd.readouterr()
    main(words)
    assert page.read_text() == said  # nothing was trained or measured again
    assert {run: (run / SWEEP).read_text() for run in runs} == written
