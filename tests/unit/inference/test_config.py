from pathlib import Path

import pytest

from configs.load import load
from inference.config import GenerateConfig
from models.plan import full, without

ROOT = Path(__file__).resolve().parents[3]
BATCH = ["prompts=b.txt", "output=json", "batch_size=4"]
DRAFTING = ["strategy=self_speculative", "exit_layer=2"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["exit_layer=2"], "exit_layer=2 would be ignored with strategy=autoregressive"),
        (["num_speculations=4"], "num_speculations=4 would be ignored"),
        (["strategy=early_exit"], r"strategy=early_exit needs exit_layer=1\.\.L-1"),
        (["strategy=self_speculative"], "strategy=self_speculative needs exit_layer"),
        (["strategy=early_exit", "exit_layer=0"], "exit_layer must be at least 1, got 0"),
        (["strategy=early_exit", "exit_layer=-1"], "exit_layer must be at least 1, got -1"),
        (["strategy=early_exit", "exit_layer=2", "num_speculations=4"], "would be ignored"),
        (
            ["strategy=self_speculative", "exit_layer=2", "num_speculations=0"],
            "num_speculations must be at least 1, got 0; .* strategy=autoregressive",
        ),
        (["skip_attn=[1]"], r"skip_attn=\[1\] would be ignored with strategy=autoregressive"),
        (["strategy=early_exit", "exit_layer=2", "skip_layers=[1]"], "would be ignored with"),
        (["strategy=self_speculative", "exit_layer=2", "skip_ffn=[1]"], "and not both"),
        (["strategy=self_speculative", "skip_ffn=[-1]"], "layers are numbered from 0"),
        (["strategy=self_speculative", "skip_ffn=3"], r"skip_ffn must be tuple\[int, ...\], got 3"),
        (
            ["strategy=self_speculative", "skip_layers=[1,2]", "skip_attn=[2,3]"],
            r"skip_attn=\[2, 3\]: layer 2 is in skip_layers too",
        ),
        (["draft_confidence=0.5"], "draft_confidence=0.5 would be ignored"),
        (["compare=true"], "compare=true compares a strategy with autoregressive"),
        (["max_new_tokens=0"], "max_new_tokens must be at least 1, got 0"),
        (["max_new_tokens=-5"], "max_new_tokens must be at least 1, got -5"),
        (["temperature=-1"], "temperature must be 0"),
        (["top_k=5"], "would be ignored at temperature=0"),
        (["temperature=1", "top_p=2"], "top_p must be in"),
        (["prompt=a", "prompts=b.txt"], "prompt and prompts are both set"),
        (["min_new_tokens=-1"], r"min_new_tokens must be in 0\.\.128, .* got -1"),
        (["max_new_tokens=5", "min_new_tokens=6"], r"min_new_tokens must be in 0\.\.5, .* got 6"),
        (
            ["min_new_tokens=6", "stop_at_eos=false"],
            "min_new_tokens=6 would be ignored with stop_at_eos=false",
        ),
        (['stop=["a", ""]'], "has an empty string, .* leave it out"),
        (["stop=a"], r"stop must be tuple\[str, ...\], got 'a'"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["strategy=adaptive", "exit_layer=2"], "exit_layer=2 would be ignored"),
        ([*BATCH, "strategy=adaptive"], "strategy=adaptive decodes one prompt at a time"),
        ([*BATCH, "output=text"], "text cannot show: add output=json"),
        (["prompt=a", "output=json", "batch_size=4"], "batch_size=4 needs several prompts"),
        ([*BATCH, *DRAFTING, "compare=true"], "leave out batch_size=4"),
        ([*BATCH, *DRAFTING, "draft_confidence=0.5"], "draft_confidence=0.5 would be ignored"),
        ([*BATCH, "strategy=self_speculative", "skip_ffn=[2]"], r"skip_ffn=\[2\] drafts for one"),
        (["prompt=a", "output=json", "ranks=data"], "ranks=data needs several prompts"),
        (["prompts=b.txt", "ranks=data"], "text cannot show: add output=json"),
        ([*BATCH, *DRAFTING, "ranks=data", "compare=true"], "leave out ranks=data"),
        (["reshard_after_forward=false"], "would be ignored with ranks=tensor"),
        (["ranks=pipeline"], "ranks.*pipeline"),
        (["strategy=speculative"], "strategy.*speculative"),
        (["max_new_token=3"], "did you mean max_new_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load(GenerateConfig, None, overrides)
    assert "\n" not in str(refused.value)


def test_the_draft_length_has_a_default_where_drafting_happens() -> None:
    chosen = load(GenerateConfig, None, ["strategy=self_speculative", "exit_layer=1"])
    assert chosen.speculations == 6
    longer = load(
        GenerateConfig, None, ["strategy=self_speculative", "exit_layer=1", "num_speculations=9"]
    )
    assert longer.speculations == 9


def test_stop_strings_are_a_list_with_escapes() -> None:
    config = load(GenerateConfig, None, ['stop=["\\n\\n", "def f(x):", "#"]'])
    assert tuple(config.stop) == ("\n\n", "def f(x):", "#")


def test_drafts_leave_out_what_is_skipped() -> None:
    words = ["strategy=self_speculative", "skip_attn=[2,1]", "skip_ffn=[2]", "skip_layers=[4]"]
    config = load(GenerateConfig, None, words)
    assert config.draft(5) == without(5, attn=[1, 2, 4], ffn=[2, 4])
    with pytest.raises(ValueError, match=r"skip_layers=\[4\]: the model has layers 0\.\.3"):
        config.draft(4)


def test_without_skips_the_layers_below_the_exit_draft() -> None:
    config = load(GenerateConfig, None, ["strategy=self_speculative", "exit_layer=3"])
    assert config.draft(5) == full(3)


def test_a_prompt_is_taken_word_for_word() -> None:
    text = 'def f(x: int = 3) -> "str":  # ${HOME} [1, {2: 3}]\n'
    assert load(GenerateConfig, None, [f"prompt={text}"]).prompt == text


def test_ends_of_sequence_may_be_passed_by() -> None:
    eos = frozenset({1})
    assert GenerateConfig().settings(eos).eos_ids == eos
    assert GenerateConfig(stop_at_eos=False).settings(eos).eos_ids == frozenset()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "generate").glob("*.yaml")), ids=lambda p: p.name
)
def test_a_shipped_config_needs_nothing_but_a_prompt(path: Path) -> None:
    config = load(GenerateConfig, path, ["prompt=def"])
    assert config.prompt == "def"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int8", "fuse": False}, "weights=int8 would be ignored with fuse=false"),
        ({"weights": "int8", "dtype": "float64"}, "weights=int8 needs dtype=bfloat16 or float32"),
        ({"weights": "int8", "dtype": "float16"}, "got float16"),
    ],
)
def test_int8_weights_with_what_cannot_have_them_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**changes)  # type: ignore[arg-type]
