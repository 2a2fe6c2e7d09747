import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.load import load as load_config
from inference.early_exit import early_exit
from inference.generate import autoregressive
from inference.generation import Decode, Settings
from inference.load import Loaded, load
from inference.sample import SamplingConfig
from inference.self_speculative import self_speculative
from inference.two_sample import TwoSample
from inference.verify import Seeded, refuse_faults, sampled, sampled_rows, verify
from inference.verify_config import VerifyConfig
from models.llama import Llama
from models.plan import full
from tests.tiny import tiny_config, tiny_llama

PROMPTS = ["def f(x):\n    return x", "class A:\n    pass\n\ndef f"]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 3, "seeds": 60, "max_new_tokens": 3}


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    return str(file)


def _verify(loaded: Loaded, file: str, out: io.StringIO, **changes: Any) -> str:
    settings: dict[str, Any] = {"prompts": file, "max_new_tokens": 20, "stop_at_eos": False}
    verify(VerifyConfig(**(settings | changes)), loaded, out)
    return out.getvalue()


def _break(loaded: Loaded) -> None:
    """Make a layer wrong for a few positions at once: what verification runs, and no other pass."""

    def wrong(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.roll(1, dims=-1) if 1 < out.shape[1] < 8 else out

    loaded.model.layers["3"].register_forward_hook(wrong)


def test_equal_tokens_are_certified_one_object_a_prompt(loaded: Loaded, prompts: str) -> None:
    for exit_layer in (1, 2, 3):
        out = _verify(loaded, prompts, io.StringIO(), output="json", exit_layer=exit_layer)
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["prompt"] for row in rows] == [1, 2]
        for row in rows:
            assert (row["verdict"], row["same_tokens"], row["position"]) == ("equal", 20, None)
            assert (row["exit_layer"], row["num_speculations"]) == (exit_layer, 6)


def test_the_exit_is_half_of_the_layers_unless_set(loaded: Loaded, prompts: str) -> None:
    *_, last = _verify(loaded, prompts, io.StringIO(), num_speculations=3).splitlines()
    assert last == "prompts: 2, self_speculative, exit 2, 3 drafts, float32: 2 equal, 0 fault"


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"strategy": "adaptive"}, "adaptive, up to 12 drafts"),
        ({"skip_attn": (1,), "skip_layers": (2,)}, "skip_attn 1, skip_layers 2, 6 drafts"),
        ({"exit_layer": 1, "batch_size": 2}, "exit 1, 6 drafts"),
    ],
)
def test_every_lossless_way_can_be_certified(
    loaded: Loaded, prompts: str, how: dict[str, Any], name: str
) -> None:
    assert f"{name}, float32: 2 equal, 0 fault\n" in _verify(loaded, prompts, io.StringIO(), **how)


def test_a_fault_is_shown_in_the_table_and_then_refused(loaded: Loaded, prompts: str) -> None:
    _break(loaded)
    out = io.StringIO()
    with pytest.raises(RuntimeError, match="not lossless here: 2 of 2 prompts are at fault") as no:
        _verify(loaded, prompts, out)
    assert "\n" not in str(no.value)
    head, first, second, note = out.getvalue().splitlines()
    assert head.split()[:2] == ["prompt", "verdict"]
    for number, line in enumerate((first, second), 1):
        assert line.split()[:2] == [str(number), "fault"]
    assert note.endswith("2 fault")


def test_a_fault_in_json_has_its_tokens_and_margin(loaded: Loaded, prompts: str) -> None:
    _break(loaded)
    out = io.StringIO()
    with pytest.raises(RuntimeError, match="not lossless"):
        _verify(loaded, prompts, out, output="json")
    for line in out.getvalue().splitlines():
        row = json.loads(line)
        assert row["position"] == row["same_tokens"] < 20
        assert row["autoregressive"] != row["self_speculative"]
        assert row["margin"] > row["tolerance"] > 0


def test_sampled_tokens_have_the_same_distribution(loaded: Loaded, prompts: str) -> None:
    out = _verify(loaded, prompts, io.StringIO(), output="json", **SAMPLED)
    for row in map(json.loads, out.splitlines()):
        assert (row["verdict"], row["seeds"]) == ("same", 60)
        assert 0.01 <= row["p_value"] <= 1
        assert row["cells"] >= 2


def test_a_sampled_fault_is_refused_after_the_table(loaded: Loaded, prompts: str) -> None:
    _break(loaded)
    out = io.StringIO()
    with pytest.raises(RuntimeError, match="prompts are at fault, the first is prompt 1"):
        _verify(loaded, prompts, out, **SAMPLED)
    assert out.getvalue().splitlines()[1].split()[:3] == ["1", "fault", "60"]


VOCABULARY, DISTRIBUTION_PROMPT = 5, [2, 0]
TINY = tiny_config(
    vocab_size=VOCABULARY,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    initializer_range=0.6,  # exits that disagree, no token hopeless
)


def _settings(seed: int, temperature: float = 1.0) -> Settings:
    sampling = SamplingConfig(temperature=temperature)
    return Settings(max_new_tokens=3, sampling=sampling, seed=seed)


def _plain(model: Llama, temperature: float = 1.0) -> Seeded:
    def seeded(seed: int) -> Decode:
        settings = _settings(seed, temperature)
        return lambda prompt: autoregressive(model, prompt, plan=full(2), settings=settings)

    return seeded


def _drafting(model: Llama) -> Seeded:
    return lambda seed: (
        lambda prompt: self_speculative(
            model, prompt, draft=full(1), num_speculations=2, settings=_settings(seed)
        )
    )


def _unverified(model: Llama) -> Seeded:
    return lambda seed: (
        lambda prompt: early_exit(model, prompt, exit_layer=1, settings=_settings(seed))
    )


@pytest.mark.parametrize("model_seed", [3, 4])
def test_a_right_sampler_is_not_told_from_autoregressive(model_seed: int) -> None:
    model = tiny_llama(TINY, seed=model_seed)
    test = sampled(DISTRIBUTION_PROMPT, _plain(model), _drafting(model), range(400))
    assert test.p_value > 0.05
    assert test.cells > 2


@pytest.mark.parametrize("broken", [_unverified, lambda model: _plain(model, 0.7)])
def test_a_broken_sampler_is_caught(broken: Any) -> None:
    model = tiny_llama(TINY, seed=3)
    test = sampled(DISTRIBUTION_PROMPT, _plain(model), broken(model), range(400))
    assert test.p_value < 1e-4


def test_p_values_are_corrected_for_the_number_of_prompts() -> None:
    tests = [TwoSample(p, 1, 4) for p in (0.004, 0.6, 1e-6)]
    rows, verdicts = sampled_rows(tests, 200)
    assert [row["p_value"] for row in rows] == pytest.approx([0.012, 1.0, 3e-6])
    assert verdicts == ["same", "same", "fault"]
    with pytest.raises(RuntimeError, match="1 of 3 prompts are at fault, the first is prompt 3"):
        refuse_faults(verdicts)
    refuse_faults(["equal", "tie", "same"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layer": 4}, r"exit_layer must be in 1\.\.3 .* got 4"),
        ({"max_new_tokens": 1000}, "max_new_tokens=1000, but the model's context is 256"),
        ({"prompts": "nowhere.txt"}, r"prompts=nowhere\.txt: there is no such file"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_decoded(
    loaded: Loaded, prompts: str, changes: dict[str, Any], message: str
) -> None:
    loaded.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    out = io.StringIO()
    with pytest.raises(ValueError, match=message):
        _verify(loaded, prompts, out, **changes)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=p.txt", "seeds=100"], "seeds=100 would be ignored at temperature=0"),
        (["prompts=p.txt", "seed=1"], "seed=1 would be ignored at temperature=0"),
        (["prompts=p.txt", "temperature=1", "seeds=10"], "seeds must be at least 50 .* got 10"),
        (["prompts=p.txt", "temperature=1", "seeds=0"], "seeds must be at least 50 .* got 0"),
        (["prompts=p.txt", "temperature=-1"], "temperature must be 0"),
        (["prompts=p.txt", "top_k=5"], "would be ignored at temperature=0"),
        (["prompts=p.txt", "exit_layer=0"], "exit_layer must be at least 1, got 0"),
        (["prompts=p.txt", "num_speculations=0"], "num_speculations must be at least 1, got 0"),
        (["prompts=p.txt", "max_new_tokens=0"], "max_new_tokens must be at least 1, got 0"),
        (["prompts=p.txt", "draft_confidence=1"], r"draft_confidence must be in \[0, 1\)"),
        (["prompts=p.txt", "dtype=int8"], "dtype"),
        (["prompts=p.txt", "strategy=early_exit"], "strategy"),
        (["prompts=p.txt", "batch_size=4", "temperature=1"], "batch_size=4 would be ignored"),
        (["prompts=p.txt", "exit_layer=2", "skip_ffn=[1]"], "and not both"),
        ([], "prompts"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_config(VerifyConfig, None, overrides)
    assert "\n" not in str(refused.value)


def test_defaults_fit_what_is_compared() -> None:
    greedy = load_config(VerifyConfig, None, ["prompts=p.txt"])
    assert (greedy.num_tokens, greedy.drafting(4).speculations, greedy.is_sampled) == (64, 6, False)
    drawn = load_config(VerifyConfig, None, ["prompts=p.txt", "temperature=0.8"])
    assert (drawn.num_tokens, drawn.num_seeds, drawn.is_sampled) == (4, 200, True)
