import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from inference.__main__ import main
from inference.identity import identify
from inference.load import Loaded, load
from inference.prompt_sets.prompt import Prompt
from inference.sweep.halving import Setting, candidates, halve, predicted_speedup
from inference.sweep.tune import parse_tune, tune
from inference.tuned import FILE, read_tuned, tuned_file, with_tuned

PROMPTS = [Prompt(str(n), text) for n, text in enumerate(("def f", "class A", "return x"))]
KEYS = ["prompts=x", "max_new_tokens=16", "stop_at_eos=false"]


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    return load(folder, dtype=torch.float32, device="cpu")


def _cpu(_: str) -> torch.device:
    return torch.device("cpu")


def _tune(loaded: Loaded, folder: Path, path: Path, *overrides: str) -> str:
    out = io.StringIO()
    config, decoding = parse_tune([*KEYS, *overrides])
    identity = identify(str(folder), dtype="float32", device="cpu")
    tune(config, decoding, PROMPTS, loaded, identity, path, out)
    return out.getvalue()


def _write(folder: Path, decoding: Mapping[str, object]) -> Path:
    """Write what tune would, with these settings."""
    identity = identify(str(folder), dtype="float32", device="cpu")
    fields = {name: getattr(identity, name) for name in ("model", "weights", "dtype", "device")}
    (folder / FILE).write_text(json.dumps({"decoding": decoding, "identity": fields}))
    return folder / FILE


def test_what_is_promised_grows_with_acceptance_and_falls_with_cost() -> None:
    assert predicted_speedup(1.0, 0.25, 4) == pytest.approx(5 / 2)
    assert predicted_speedup(0.0, 0.25, 4) == pytest.approx(1 / 2)
    assert predicted_speedup(0.5, 0.5, 2) == pytest.approx(1.75 / 2)
    some = candidates({1: 0.1, 2: 0.9, 3: 0.95}, {1: 0.25, 2: 0.5, 3: 0.75}, (2, 4), most=3)
    assert [e for e, _ in some] == [2, 2, 3]


def test_halving_keeps_the_better_half_and_doubles_the_prompts() -> None:
    asked = list[tuple[int, int]]()

    def measure(settings: Sequence[Setting], prompts: int) -> dict[Setting, float]:
        asked.append((len(settings), prompts))
        return {(e, k): e + k / 10 for e, k in settings}

    rungs = halve([(e, k) for e in (1, 2, 3, 4) for k in (2, 4)], measure, 6)
    assert asked == [(8, 2), (4, 4), (2, 6)]
    assert max(rungs[-1].speedups, key=lambda s: rungs[-1].speedups[s]) == (4, 4)
    asked.clear()
    halve([(1, 2)], measure, 1)
    assert asked == [(1, 1)]


def test_the_best_settings_are_written_beside_the_model(loaded: Loaded, folder: Path) -> None:
    path = tuned_file(str(folder))
    assert path == folder / FILE
    text = _tune(loaded, folder, path, "exit_layer=[1,2]", "num_speculations=[2,4]")
    content = json.loads(path.read_text())
    measured, decoding = content["measured"], content["decoding"]
    assert measured["strategy"] in ("self_speculative", "adaptive")
    assert measured["same_output"] is True
    if measured["speedup"]["low"] > 1:
        assert decoding["strategy"] == measured["strategy"]
    else:  # drafts of a model that has not been trained are worth nothing
        assert decoding == {"strategy": "autoregressive"}
        assert "plain decoding is best here" in text
    assert content["identity"]["dtype"] == "float32"
    assert text.endswith(f"written to {path}\n")
    assert read_tuned(path)["decoding"] == decoding


@torch.no_grad()
def test_layers_that_do_nothing_are_not_run_in_drafts(loaded: Loaded, folder: Path) -> None:
    for layer in (1, 2, 3):
        block = loaded.model.layers[str(layer)]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    path = folder / FILE
    text = _tune(loaded, folder, path, "exit_layer=[1,3]", "num_speculations=[2,4]")
    content = json.loads(path.read_text())
    measured = content["measured"]
    assert measured["acceptance"]["value"] == 1
    assert measured["exit_layer"] == (None if measured["strategy"] == "adaptive" else 1)
    assert f"\n{measured['strategy']}, " in text or "plain decoding is best here" in text


def test_generate_uses_what_was_tuned_unless_told_otherwise(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tuned = {"strategy": "self_speculative", "exit_layer": 2, "num_speculations": 3}
    _write(folder, tuned)
    keys = ["prompt=def f", "max_new_tokens=8", "output=json", "device=cpu"]
    caplog.set_level("INFO")
    for given, expected in (
        ([], tuned),
        (["strategy=autoregressive"], dict.fromkeys(tuned) | {"strategy": "autoregressive"}),
        (["strategy=early_exit", "exit_layer=1"], {"strategy": "early_exit", "exit_layer": 1}),
    ):
        caplog.clear()
        main(["generate", str(folder), *keys, *given])
        values = json.loads(capsys.readouterr().out)
        assert {name: values[name] for name in expected} == expected
        assert ("as tuned: strategy=self_speculative exit_layer=2" in caplog.text) == (not given)


def test_a_number_of_drafts_may_be_changed_alone(folder: Path) -> None:
    _write(folder, {"strategy": "self_speculative", "exit_layer": 2, "num_speculations": 3})
    assert with_tuned(str(folder), ["num_speculations=5"], _cpu)[-1] == "num_speculations=5"


def test_adaptive_decoding_may_have_won(folder: Path) -> None:
    _write(folder, {"strategy": "adaptive"})
    assert with_tuned(str(folder), ["prompt=a"], _cpu) == ["strategy=adaptive", "prompt=a"]


@pytest.mark.parametrize("given", [["config=a.yaml"], ["exit_layer=2"], ["skip_layers=[1]"]])
def test_who_has_chosen_is_not_given_what_was_tuned(folder: Path, given: list[str]) -> None:
    _write(folder, {"strategy": "autoregressive"})
    assert with_tuned(str(folder), given, _cpu) == given


def test_what_was_tuned_for_something_else_is_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = _write(folder, {"strategy": "autoregressive"})
    caplog.set_level("INFO")
    assert with_tuned(str(folder), ["dtype=bfloat16"], _cpu) == ["dtype=bfloat16"]
    assert "was tuned for dtype float32, not bfloat16: not used" in caplog.text
    with pytest.raises(ValueError, match="tuned for dtype float32, not bfloat16: run tune again"):
        with_tuned(str(folder), ["dtype=bfloat16", f"tuned={file}"], _cpu)
    caplog.clear()
    assert with_tuned(str(folder), [], _cpu, ranks=2) == []
    assert "was tuned for one process, not 2: not used" in caplog.text
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    caplog.clear()
    assert with_tuned(str(folder), [], _cpu) == []
    assert "was tuned for weights" in caplog.text


def test_a_file_may_be_named(folder: Path, tmp_path: Path) -> None:
    file = _write(folder, {"strategy": "self_speculative", "exit_layer": 2, "num_speculations": 3})
    moved = shutil.move(file, tmp_path / "elsewhere.json")
    assert with_tuned(str(folder), [], _cpu) == []
    assert with_tuned(str(folder), [f"tuned={moved}"], _cpu)[0] == "strategy=self_speculative"
    with pytest.raises(ValueError, match=r"elsewhere\.json would be ignored: strategy is given"):
        with_tuned(str(folder), [f"tuned={moved}", "strategy=autoregressive"], _cpu)
    with pytest.raises(ValueError, match=r"tuned=no\.json: there is no such file"):
        with_tuned(str(folder), ["tuned=no.json"], _cpu)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"decoding": {"strategy": "fastest"}}', '{"decoding": {"prompt": "x"}}'],
)
def test_a_file_that_is_something_else_is_refused(folder: Path, content: str) -> None:
    (folder / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"decoding\.json is not what tune writes"):
        with_tuned(str(folder), [], _cpu)


def test_a_hub_id_needs_a_file() -> None:
    assert tuned_file("owner/name") is None
    with pytest.raises(ValueError, match=r"owner/name is no folder .* name a file, to=FILE\.json"):
        main(["tune", "owner/name", "prompts=x"])


def test_an_identity_is_that_of_the_weights_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "deeper" / "model")
    here, there = (identify(str(f), dtype="float32", device="cpu") for f in (folder, moved))
    assert here == there
    other = identify(str(folder), dtype="bfloat16", device="cpu")
    assert here.difference(other) == "dtype float32, not bfloat16"
    assert identify("owner/name", dtype="float32", device="cpu").weights == "hub"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["to=a.csv"], r"to=a\.csv must be a \.json file"),
        (["strategy=early_exit", "skip_layers=[1]"], "would be ignored|needs exit_layer"),
        (["max_new_tokens=1"], "max_new_tokens=1 leaves nothing to measure"),
        (["num_samples=0"], "num_samples must be at least 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tune(["prompts=x", *overrides])


def test_new_tokens_are_few_unless_said() -> None:
    assert parse_tune(["prompts=x"])[1].max_new_tokens == 64
    assert parse_tune(["prompts=x", "max_new_tokens=9"])[1].max_new_tokens == 9
