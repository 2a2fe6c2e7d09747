from pathlib import Path
from typing import Any

import pytest

from inference.card.decoding import BEGIN, END, decoding_section, promising, update_card
from inference.card.gather import tuned_facts
from inference.card.text import card_text
from inference.identity import Identity
from tests.card_facts import facts, tuned, validation

INTERVAL = {"value": 1.5, "low": 1.4, "high": 1.6}


def content(**changes: Any) -> dict[str, Any]:
    """What `read_tuned` returns of a file of `tune`."""
    measured = {
        "strategy": "self_speculative",
        "exit_layer": 2,
        "num_speculations": 4,
        "acceptance": INTERVAL,
        "speedup": INTERVAL,
        "speed": INTERVAL,
        "base_speed": INTERVAL,
    }
    decoding = {"strategy": "self_speculative", "exit_layer": 2, "num_speculations": 4}
    found = {
        "decoding": decoding,
        "identity": Identity("model", "0" * 16, "float32", "cpu"),
        "measured": measured,
        "prompts": "cnn_dm:/home/me/news.csv",
        "num_prompts": 8,
    }
    return {**found, **changes}


def test_agreement_promises_an_exit_and_a_length() -> None:
    setting, speedup = promising(validation(0.9, 0.9, 0.95)) or (None, 0)
    assert setting == (1, 6)
    assert speedup == pytest.approx(sum(0.9**n for n in range(7)) / 2.5)
    assert promising(validation(0.1, 0.2, 0.3)) is None
    assert promising(validation()) is None
    assert promising(None) is None


def test_what_was_tuned_is_said_with_its_command() -> None:
    text = decoding_section("my model", tuned(), None)
    assert "was 1.50x as fast as plain decoding (1.40 to 1.60)" in text
    assert "3,000 tokens/s against 2,000, 75% of the drafts accepted" in text
    assert "on 8 prompts of `prompts.txt`, in float32 on cpu" in text
    settings = "strategy=self_speculative exit_layer=2 num_speculations=4"
    assert f"generate 'my model' prompt=\"The\" {settings}\n" in text


def test_plain_decoding_that_was_best_is_said_to_be() -> None:
    slow = tuned(settings=("strategy=autoregressive",))
    text = decoding_section("m", slow, None)
    assert "plain decoding is best there" in text
    assert "python -m inference tune m " in text
    assert "generate" not in text


def test_without_measurements_the_command_that_makes_them_is_named() -> None:
    text = decoding_section("m", None, validation(0.9, 0.9, 0.95))
    assert "python -m inference tune m prompts=prompts.txt" in text
    assert "drafts of 6 at exit 1 promise at most 2.1x" in text
    assert "strategy=adaptive" in decoding_section("m", None, None)


def test_only_the_section_of_a_card_is_brought_up_to_date(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    before = card_text(facts()).replace("# mine_hf", "# Ours, édité\r\n")
    card.write_bytes(before.encode())
    assert update_card(tmp_path, content()) == card
    after = card.read_bytes().decode()
    parts, others = (text.partition(BEGIN) for text in (before, after))
    assert others[0] == parts[0]
    assert others[2].partition(END)[2] == parts[2].partition(END)[2]
    assert "1.50x as fast" in others[2].partition(END)[0]
    assert "prompts of `cnn_dm:news.csv`" in after
    assert list(tmp_path.iterdir()) == [card]


@pytest.mark.parametrize("text", ["# mine", f"{END} {BEGIN}", BEGIN])
def test_somebody_elses_card_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert update_card(tmp_path, content()) is None
    assert (tmp_path / "README.md").read_text() == text
    assert update_card(tmp_path / "nowhere", content()) is None


@pytest.mark.parametrize("wrong", [{"measured": {}}, {"measured": None}, {"num_prompts": "x"}])
def test_a_file_that_says_too_little_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not say what was measured"):
        tuned_facts(content(**wrong))
