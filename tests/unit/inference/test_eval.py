import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from inference.__main__ import main
from inference.evaluate.command import eval_model
from inference.evaluate.config import EvalConfig
from inference.evaluate.harness import as_lm, find_tasks
from inference.load import Loaded, load

ROWS = [
    {"question": "def f", "choices": ["(x):", "\n", "(x"], "answer": 0, "text": "def f(x):"},
    {"question": "class", "choices": [" A:", " None", "!"], "answer": 0, "text": "class A"},
    {"question": "return x", "choices": [" if", "é", "pass"], "answer": 1, "text": "return x if"},
]
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "local_text": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "local_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
        (tmp_path / f"{name}.yaml").write_text(
            json.dumps({"task": name, "test_split": "test"} | data | task)
        )
    return tmp_path


def _eval(loaded: Loaded, folder: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"tasks": ",".join(TASKS), "output": "json"} | changes
    config, out = EvalConfig(task_folder=str(folder), **settings), io.StringIO()
    eval_model(config, loaded, find_tasks(config), out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def _theirs(exported: Path, layers: int) -> Any:
    """Return lm-eval's own model, cut after so many layers."""
    hugging_face = pytest.importorskip("lm_eval.models.huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    return hugging_face.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=32)


def _requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parity
@pytest.mark.parametrize("layers", [2, 4])
def test_likelihoods_are_those_of_lm_evals_own_model(
    loaded: Loaded, exported: Path, layers: int
) -> None:
    theirs = _theirs(exported, layers)
    exit_layer = layers if layers < 4 else None
    ours = as_lm(EvalConfig(tasks="x", exit_layer=exit_layer, batch_size=2, max_length=32), loaded)
    pairs = _requests(
        ("def f", "(x):"), ("def f ", "(x)"), ("", "class A"), ("x " * 40, "return x")
    )
    for (a, greedy), (b, other) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert a == pytest.approx(b, abs=1e-5)
        assert greedy == other
    texts = _requests(("def f(x):\n" * 20,), ("class A",))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts), abs=1e-5
    )


@pytest.mark.parity
def test_texts_are_those_of_lm_evals_own_model(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / "tokenizer.model").unlink()  # both are to decode broken characters alike
    loaded = load(folder, dtype=torch.float64, device="cpu")
    theirs, ours = _theirs(exported, 4), as_lm(EvalConfig(tasks="x", max_length=32), loaded)
    requests = _requests(*(("def f", {"until": ["\n"], "max_gen_toks": n}) for n in (3, 8)))
    assert ours.generate_until(requests) == theirs.generate_until(requests)


def test_local_tasks_need_no_network(loaded: Loaded, folder: Path) -> None:
    full = _eval(loaded, folder)
    assert set(full["results"]) == set(TASKS)
    verified = _eval(loaded, folder, exit_layer=2, verified=True, num_speculations=3)
    assert verified["results"] == full["results"]
    alone = _eval(loaded, folder, exit_layer=1)
    perplexities = [
        found["results"]["local_rolling"]["word_perplexity,none"] for found in (full, alone)
    ]
    assert all(1 < each < math.inf for each in perplexities)
    assert perplexities[0] != perplexities[1]
    assert (alone["exit_layer"], alone["verified"]) == (1, False)


def test_the_table_says_which_exit_answered(loaded: Loaded, folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "out" / "found.json"
    config = EvalConfig(
        tasks="local_choice", task_folder=str(folder), exit_layer=2, limit=2, to=str(to)
    )
    out = io.StringIO()
    eval_model(config, loaded, find_tasks(config), out)
    head, row, *_ = out.getvalue().splitlines()
    assert head.split() == ["task", "metric", "filter", "value", "standard", "error"]
    assert row.split()[:3] == ["local_choice", "acc", "none"]
    assert 0 <= float(row.split()[3]) <= 1
    assert out.getvalue().endswith("\nexit 2, nothing verified, float32\n")
    assert json.loads(to.read_text())["n-samples"]["local_choice"]["effective"] == 2


def test_an_unknown_task_is_named_before_the_model_is_loaded(folder: Path) -> None:
    arguments = ["eval", "no/such/model", f"task_folder={folder}"]
    with pytest.raises(ValueError, match="no task local_choise; did you mean local_choice"):
        main([*arguments, "tasks=local_choise"])


def test_what_the_model_cannot_do_is_refused(loaded: Loaded) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3"):
        as_lm(EvalConfig(tasks="x", exit_layer=4), loaded)
    with pytest.raises(ValueError, match="max_length=300, but the model's context is 256"):
        as_lm(EvalConfig(tasks="x", max_length=300), loaded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": " , "}, "names no task"),
        ({"exit_layer": 0}, "exit_layer must be at least 1, got 0"),
        ({"verified": True}, "verified=true needs exit_layer"),
        ({"num_speculations": 3, "exit_layer": 1}, "would be ignored: nothing is drafted"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0"),
        ({"to": "a.csv"}, r"to=a\.csv must be a \.json file"),
    ],
)
def test_settings_that_do_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalConfig(**({"tasks": "x"} | changes))


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"eval needs lm-eval: install it, pip install"):
        find_tasks(EvalConfig(tasks="x"))
