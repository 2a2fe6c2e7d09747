import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.load import Loaded, load
from inference.prompt_sets.encode import encode_sample
from inference.prompt_sets.prompt import Prompt, check_sample, sample
from inference.prompt_sets.read import read_prompt_set

ROWS: dict[str, dict[str, Any]] = {
    "spec_bench": {
        "question_id": 81,
        "category": "writing",
        "turns": ["Describe a lake.", "Now without the letter A."],
    },
    "cnn_dm": {"article": "A cat sat. It slept.", "highlights": "Cat sleeps.", "id": "f00"},
    "cnn_dm_lm": {"article": " ".join(map(str, range(105))), "highlights": "", "id": "f01"},
    "xsum": {"document": "Rain fell.", "summary": "It rained.", "id": "7"},
    "human_eval": {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "assert one() == 1",
    },
    "top_v2": {
        "domain": "alarm",
        "utterance": "wake me at 5",
        "semantic_parse": "[IN:CREATE_ALARM wake me [SL:DATE_TIME at 5 ] ]",
    },
}
PROMPTS = {
    "spec_bench": Prompt("81", "Describe a lake."),
    "cnn_dm": Prompt("f00", "Article: A cat sat. It slept.\nSummary:", ("Cat sleeps.",)),
    "cnn_dm_lm": Prompt("f01", " ".join(map(str, range(100))), ("100 101 102 103 104",)),
    "xsum": Prompt("7", "Article: Rain fell.\nSummary:", ("It rained.",)),
    "human_eval": Prompt("HumanEval/0", "def one():\n", ("    return 1\n",)),
    "top_v2": Prompt("1", "wake me at 5", ("[IN:CREATE_ALARM wake me [SL:DATE_TIME at 5 ] ]",)),
}


def _file(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", ROWS)
def test_a_local_file_of_a_set_gives_its_prompts(tmp_path: Path, name: str) -> None:
    file = _file(tmp_path, ROWS[name], ROWS[name])
    first, second = read_prompt_set(f"{name}:{file}")
    assert first == PROMPTS[name]
    assert (second.text, second.references) == (first.text, first.references)


def test_plain_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo: [x]\n")
    assert read_prompt_set(str(file)) == [Prompt("1", "one"), Prompt("3", "two: [x]")]


def test_json_lines_of_ones_own_may_have_ids_and_references(tmp_path: Path) -> None:
    own = [{"prompt": "a\u2028b", "id": 3, "reference": "c"}, {"prompt": "d"}]
    assert read_prompt_set(str(_file(tmp_path, *own))) == [
        Prompt("3", "a\u2028b", ("c",)),
        Prompt("2", "d"),
    ]


@pytest.mark.parametrize("name", [name for name in ROWS if name != "human_eval"])
def test_rows_of_a_set_without_its_name_are_recognised(tmp_path: Path, name: str) -> None:
    file = _file(tmp_path, ROWS[name])
    kind = "cnn_dm" if name == "cnn_dm_lm" else name
    with pytest.raises(ValueError, match=f"is a row of {kind}: write prompts={kind}:"):
        read_prompt_set(str(file))


@pytest.mark.parametrize(
    ("spec", "row", "message"),
    [
        ("cnn_dm:{}", ROWS["xsum"], "has no column 'article': it has document, summary, id"),
        ("xsum:{}", {"document": 3, "summary": ""}, "line 1: document must be a text, got 3"),
        ("spec_bench:{}", {"question_id": 1, "turns": []}, "turns must be a list of texts"),
        ("cnn_mail:{}", ROWS["cnn_dm"], r"no such file, and no such set \(spec_bench, cnn_dm, "),
        ("spec_bench", {}, "the hub does not have it; name its file, spec_bench:FILE"),
        ("xsum:nowhere.csv", {}, r"prompts=xsum:nowhere\.csv: there is no such file"),
        ("{}", {"prompt": "a", "reference": 1}, "line 1: reference must be a text, got 1"),
    ],
)
def test_what_is_no_prompt_set_is_said_in_one_line(
    tmp_path: Path, spec: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_prompt_set(spec.format(_file(tmp_path, row)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a\xff\n")
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 text"):
        read_prompt_set(str(tmp_path / name))


def test_a_hub_out_of_reach_leaves_the_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RuntimeError, match=r"prompts=top_v2: .* as in prompts=top_v2:FILE"
    ) as error:
        read_prompt_set("top_v2")
    assert "\n" not in str(error.value)


def test_a_sample_is_a_function_of_its_seed() -> None:
    prompts = [Prompt(str(n), "x") for n in range(50)]
    some = sample(prompts, 8, 3)
    assert some == sample(prompts, 8, 3)
    assert [int(each.id) for each in some] == sorted({int(each.id) for each in some})
    assert some != sample(prompts, 8, 4)
    assert len(some) == 8
    assert sample(prompts, None, 0) == sample(prompts, 60, 5) == prompts


def test_a_sample_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        check_sample(0, 0)
    with pytest.raises(ValueError, match="sample_seed=3 would be ignored"):
        check_sample(None, 3)


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


def test_long_prompts_are_refused_or_left_out_before_the_choice(loaded: Loaded) -> None:
    prompts = [Prompt("short", "def f"), Prompt("long", "x " * 300), Prompt("other", "class A")]
    settings: dict[str, Any] = {"count": 2, "seed": 0, "max_new_tokens": 10}
    with pytest.raises(ValueError, match=r"prompt long: .* max_prompt_tokens=246 leaves such"):
        encode_sample(loaded, prompts, **settings | {"count": 3}, max_prompt_tokens=None)
    samples = encode_sample(loaded, prompts, **settings, max_prompt_tokens=246)
    assert [each.id for each in samples.prompts] == ["short", "other"]
    assert samples.left_out == 1
    assert list(samples.ids[0]) == loaded.encode("def f")
    with pytest.raises(ValueError, match="chat=true needs a chat template"):
        encode_sample(loaded, prompts, **settings, max_prompt_tokens=None, chat=True)
    with pytest.raises(ValueError, match="max_prompt_tokens=1 leaves out all 3 prompts"):
        encode_sample(loaded, prompts, **settings, max_prompt_tokens=1)
