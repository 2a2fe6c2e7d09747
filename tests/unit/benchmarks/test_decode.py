from pathlib import Path

import pytest

from benchmarks.decode import HUGGING_FACE, parse, rows_of
from benchmarks.decode_picture import save_picture
from benchmarks.decoders import Decoded
from benchmarks.timing import Timings


def test_a_model_and_options_are_told_apart() -> None:
    assert parse([]) == (None, {})
    words = ["folder", "layerskip=a", "layerskip_python=b=c"]
    assert parse(words) == ("folder", {"layerskip": "a", "layerskip_python": "b=c"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "give one MODEL"),
        (["speed=1"], "arguments .'speed'."),
        (["layerskip=a"], "go together"),
    ],
)
def test_other_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(words)


def test_speed_is_compared_round_by_round_for_each_token(tmp_path: Path) -> None:
    timings = {
        HUGGING_FACE: Timings((2.0, 4.0, 2.0), (2.0, 4.0, 2.0)),
        "Skipstone batch 8": Timings((1.0, 2.0, 1.0), (1.0, 2.0, 1.0)),
        "Skipstone exit 2, 4 drafts": Timings((0.5, 1.0, 0.5), (0.5, 1.0, 0.5)),
    }
    made = {
        HUGGING_FACE: Decoded(tokens=10),
        "Skipstone batch 8": Decoded(tokens=80),
        "Skipstone exit 2, 4 drafts": Decoded(tokens=10, drafted=8, accepted=6),
    }
    rows = rows_of(timings, made)
    assert [row["tokens_per_second"] for row in rows] == [5, 80, 20]
    assert [row["times_hugging_face"] for row in rows] == [1, 16, 4]
    assert [row["acceptance"] for row in rows] == ["-", "-", 0.75]
    save_picture(rows, {"bfloat16": 90.0, "int8": 180.0}, "tiny", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000
