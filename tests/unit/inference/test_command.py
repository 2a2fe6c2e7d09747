import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.command import generate, read_prompts
from inference.config import GenerateConfig
from inference.load import Loaded, load

FIELDS = {
    "text", "token_ids", "acceptance_rate", "tokens_per_second", "seconds_prefill",
    "seconds_decode", "rounds", "accept_histogram", "model", "strategy", "exit_layer",
    "skip_attn", "skip_ffn", "skip_layers", "num_speculations",
}  # fmt: skip
SPECULATIVE: dict[str, Any] = {"strategy": "self_speculative", "exit_layer": 2}


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


def _generate(loaded: Loaded, **changes: Any) -> tuple[str, str]:
    settings: dict[str, Any] = {
        "prompt": "def f",
        "max_new_tokens": 12,
        "stop_at_eos": False,
    } | changes
    out, notes = io.StringIO(), io.StringIO()
    generate(GenerateConfig(**settings), loaded, out, notes)
    return out.getvalue(), notes.getvalue()


def _json(loaded: Loaded, **changes: Any) -> list[dict[str, Any]]:
    out, _ = _generate(loaded, output="json", **changes)
    return [json.loads(line) for line in out.splitlines()]


def test_json_has_every_field_and_agrees_with_itself(loaded: Loaded) -> None:
    (values,) = _json(loaded, **SPECULATIVE, num_speculations=3)
    assert values.keys() == FIELDS
    assert len(values["token_ids"]) == 12
    prompt = loaded.encode("def f")
    assert "def f" + values["text"] == loaded.decode([*prompt, *values["token_ids"]])
    assert values["rounds"] >= sum(values["accept_histogram"])
    accepted = sum(n * rounds for n, rounds in enumerate(values["accept_histogram"]))
    assert accepted + values["rounds"] == 12
    assert (values["exit_layer"], values["num_speculations"]) == (2, 3)


def test_plain_decoding_has_no_acceptance(loaded: Loaded) -> None:
    (values,) = _json(loaded)
    assert (values["acceptance_rate"], values["accept_histogram"]) == (None, [])
    assert (values["exit_layer"], values["num_speculations"]) == (None, None)
    assert values["rounds"] == 12
    assert values["tokens_per_second"] == pytest.approx(11 / values["seconds_decode"])


def test_self_speculation_writes_the_text_of_plain_decoding(loaded: Loaded) -> None:
    assert _json(loaded, **SPECULATIVE)[0]["text"] == _json(loaded)[0]["text"]
    assert _json(loaded, strategy="early_exit", exit_layer=2)[0]["text"] != _json(loaded)[0]["text"]


def test_drafts_may_leave_out_any_part(loaded: Loaded) -> None:
    parts = {"skip_attn": (1,), "skip_ffn": (2, 3)}
    (values,) = _json(loaded, strategy="self_speculative", **parts)
    assert values["text"] == _json(loaded)[0]["text"]
    assert (values["skip_attn"], values["skip_ffn"], values["skip_layers"]) == ([1], [2, 3], [])
    out, _ = _generate(loaded, strategy="self_speculative", **parts, compare=True)
    assert "\nself_speculative, skip_attn 1, skip_ffn 2 3, 6 drafts" in out
    assert "the same tokens" in out


def test_streamed_text_is_the_prompt_and_what_json_calls_text(loaded: Loaded) -> None:
    out, notes = _generate(loaded, **SPECULATIVE)
    assert out == "def f" + _json(loaded)[0]["text"] + "\n"
    assert notes.startswith("[12 tokens, ")


def test_a_comparison_prints_both_rows_and_the_speedup(loaded: Loaded) -> None:
    out, _ = _generate(loaded, **SPECULATIVE, compare=True)
    table = out.split("\n\n")[-1]
    assert "\nautoregressive" in table
    assert "\nself_speculative, exit 2, 6 drafts" in table
    assert "1.00x" in table
    assert "the same tokens" in table


def test_adaptive_decoding_needs_no_exit(loaded: Loaded) -> None:
    out, _ = _generate(loaded, strategy="adaptive", compare=True)
    table = out.split("\n\n")[-1]
    assert "\nadaptive, up to 12 drafts" in table
    assert "the same tokens" in table


def test_a_comparison_is_in_the_last_object(loaded: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("def f\n\nclass A\n")
    values = _json(loaded, **SPECULATIVE, compare=True, prompt=None, prompts=str(file))
    assert [each.keys() == FIELDS for each in values] == [True, False]
    comparison = values[-1]["comparison"]
    assert comparison["same_output"] is True
    assert comparison["prompts"] == 2
    assert comparison["autoregressive"]["tokens"] == 24
    assert comparison["self_speculative"]["tokens_per_second"] > 0
    assert comparison["speedup"] > 0


def test_one_new_token_has_no_rate(loaded: Loaded) -> None:
    (values,) = _json(loaded, **SPECULATIVE, max_new_tokens=1)
    assert (values["tokens_per_second"], values["rounds"]) == (None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "early_exit", "exit_layer": 4}, r"exit_layer must be in 1\.\.3 .* got 4"),
        (
            {"strategy": "self_speculative", "skip_layers": (1, 4)},
            r"skip_layers=\[1, 4\]: the model has layers 0\.\.3",
        ),
        (
            {"strategy": "self_speculative", "skip_layers": (0, 1, 2, 3)},
            "the draft visits no layer",
        ),
        ({"max_new_tokens": 1000}, "max_new_tokens=1000, but the model's context is 256"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "x " * 300}, "context is 256: shorten it"),
        ({"prompt": None}, "there is no prompt"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_printed(
    loaded: Loaded, changes: dict[str, Any], message: str
) -> None:
    out = io.StringIO()
    config = GenerateConfig(**({"prompt": "def"} | changes))
    with pytest.raises(ValueError, match=message):
        generate(config, loaded, out, out)
    assert out.getvalue() == ""


def test_prompts_come_from_lines_or_json_lines(tmp_path: Path) -> None:
    lines, objects = tmp_path / "a.txt", tmp_path / "b.jsonl"
    lines.write_text("one\n\ntwo\n")
    objects.write_text('{"prompt": "one\\nline"}\n{"prompt": "two", "id": 3}\n')
    assert read_prompts(GenerateConfig(prompts=str(lines))) == ["one", "two"]
    assert read_prompts(GenerateConfig(prompts=str(objects))) == ["one\nline", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "line 2 is not an object such as"),
        ("plain text\n", "line 1 is not an object such as"),
        ('{"prompt": 3}\n', "line 1 is not an object such as"),
    ],
)
def test_a_bad_line_of_prompts_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(GenerateConfig(prompts=str(file)))


def test_a_missing_file_of_prompts_is_named() -> None:
    with pytest.raises(ValueError, match=r"prompts=nowhere\.txt: there is no such file"):
        read_prompts(GenerateConfig(prompts="nowhere.txt"))


WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "early exit": {"strategy": "early_exit", "exit_layer": 2},
    "self-speculative": {**SPECULATIVE, "num_speculations": 3},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@every_way
@pytest.mark.parametrize("rows", [2, 8])
def test_a_batch_prints_what_one_by_one_prints(
    loaded: Loaded, tmp_path: Path, way: dict[str, Any], rows: int
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("def f\nclass A\nreturn x if x else None\nd\n    pass\n")
    settings = {**way, "prompt": None, "prompts": str(file), "stop_at_eos": True}
    one_by_one = _json(loaded, **settings, max_new_tokens=30)
    batched = _json(loaded, **settings, max_new_tokens=30, batch_size=rows)
    timed = {"tokens_per_second", "seconds_prefill", "seconds_decode"}
    assert [each.keys() == FIELDS for each in batched] == [True] * 5
    for one, other in zip(one_by_one, batched, strict=True):
        assert {key: one[key] for key in FIELDS - timed} == {
            key: other[key] for key in FIELDS - timed
        }
        assert other["seconds_decode"] > 0


@every_way
def test_text_ends_before_a_stop_string_and_tokens_with_it(
    loaded: Loaded, tmp_path: Path, way: dict[str, Any]
) -> None:
    (free,) = _json(loaded, **way)
    text = free["text"]
    stop = next(  # no part of a character
        text[i : i + 2] for i in range(4, len(text) - 1) if "\ufffd" not in text[i : i + 2]
    )
    cut = text[: text.index(stop)]
    (values,) = _json(loaded, **way, stop=("never", stop))
    assert values["text"] == cut
    assert values["token_ids"] == free["token_ids"][: len(values["token_ids"])]
    assert len(values["token_ids"]) < 12
    out, _ = _generate(loaded, **way, stop=("never", stop))
    assert out == f"def f{cut}\n"
    file = tmp_path / "prompts.txt"
    file.write_text("class A\ndef f\n")
    settings = {**way, "prompt": None, "prompts": str(file), "batch_size": 2}
    batched = _json(loaded, **settings, stop=("never", stop))
    assert (batched[1]["text"], batched[1]["token_ids"]) == (cut, values["token_ids"])


@every_way
def test_no_end_of_sequence_before_the_least_length(loaded: Loaded, way: dict[str, Any]) -> None:
    (free,) = _json(loaded, **way)
    ending = replace(loaded, eos_ids=frozenset(free["token_ids"][:2]))
    assert len(_json(ending, **way, stop_at_eos=True)[0]["token_ids"]) == 1
    (values,) = _json(ending, **way, stop_at_eos=True, min_new_tokens=6)
    assert not ending.eos_ids & set(values["token_ids"][:6])
    assert len(values["token_ids"]) > 6
