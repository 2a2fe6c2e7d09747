"""Prompts, files of them, and settings of decoding that nobody should give."""

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inference.__main__ import main as inference
from tests.fuzz.cases import cases
from tests.fuzz.command import judge, run
from tests.fuzz.damage import ODD_NUMBERS, ODD_TEXTS, damaged_bytes
from tests.fuzz.folders import nothing_lost
from tests.fuzz.test_configs import _argument, _spell
from tests.fuzz.test_data import ODD_FILES

NUMBERS = (
    "temperature", "top_k", "top_p", "max_new_tokens", "min_new_tokens", "seed", "exit_layer",
    "num_speculations", "draft_confidence", "batch_size", "num_samples", "sample_seed",
)  # fmt: skip
CHOICES = {
    "strategy": ["autoregressive", "early_exit", "self_speculative", "adaptive"],
    "output": ["text", "json"],
    "stop_at_eos": ["true", "false"],
    "stop": ["[]", "['']", "[a]", "['\\ud800']", "[' ', é]", "a", "[1]"],
    "compare": ["true"],
    "chat": ["true"],
    "interactive": ["true"],
    "dtype": ["float32", "bfloat16", "float64"],
    "fuse": ["true", "false"],
    "weights": ["int8", "dtype"],
    "ranks": ["data", "tensor"],
    "skip_attn": ["[0]", "[1]", "[0,1]", "[7]", "[-1]", "[1,1]"],
    "skip_layers": ["[0]", "[1]", "[0,1]", "[99]"],
}

texts = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cs", "Cc", "Co", "Mn", "So", "Zs"]), max_size=20),
    st.sampled_from([*ODD_TEXTS, "x" * 10**5, "é" * 10**5, "\n" * 100]),
)


@st.composite
def settings_of(draw: st.DrawFn) -> list[str]:
    """Return a way of decoding that is short unless it asks for the impossible."""
    strategy = draw(st.sampled_from(CHOICES["strategy"]))
    keys = ["max_new_tokens=3", f"strategy={strategy}"]
    keys += ["exit_layer=1"] if strategy in ("early_exit", "self_speculative") else []
    for name in draw(st.lists(st.sampled_from([*NUMBERS, *CHOICES]), max_size=2)):
        if name in CHOICES:
            keys.append(f"{name}={draw(st.sampled_from(CHOICES[name]))}")
        else:
            keys.append(f"{name}={_spell(draw(st.sampled_from(ODD_NUMBERS)))}")
    return keys


@cases(70)
@given(texts, settings_of())
def test_a_prompt_is_continued_or_refused(trained: Path, prompt: str, keys: list[str]) -> None:
    with nothing_lost(trained):
        model = str(trained / "run")
        judge(run(inference, ["generate", model, _argument(f"prompt={prompt}"), *keys]))


def _rows(prompts: list[str]) -> bytes:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()


def _lines(prompts: list[str]) -> bytes:
    return "\n".join(prompts).encode("utf-8", "surrogatepass")


WRITERS: dict[str, Callable[[list[str]], bytes]] = {"jsonl": _rows, "txt": _lines}


@cases(60)
@given(st.data())
def test_a_file_of_prompts_is_continued_or_refused(trained: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(list(WRITERS)))
    content = WRITERS[suffix](data.draw(st.lists(texts, min_size=1, max_size=3)))
    kind = data.draw(st.sampled_from(["whole", "damaged", "odd"]))
    if kind == "damaged":
        content = data.draw(damaged_bytes(content[:2000]))
    elif kind == "odd":
        content = data.draw(st.sampled_from(ODD_FILES))
    path = trained / f"prompts.{suffix}"
    path.write_bytes(content)
    command = data.draw(st.sampled_from(["generate", "generate", "perplexity", "verify", "bench"]))
    keys = {
        "generate": lambda: [f"prompts={path}", *data.draw(settings_of())],
        "perplexity": lambda: [f"texts={path}", "max_tokens=50"],
        "verify": lambda: [f"prompts={path}", "max_new_tokens=3", "num_samples=1", "exit_layer=1"],
        "bench": lambda: [f"prompts={path}", "max_new_tokens=3", "num_samples=1", "repeats=1"],
    }[command]()
    with nothing_lost(trained):
        judge(run(inference, [command, str(trained / "run"), *keys]))


@cases(20)
@given(st.binary(max_size=300), st.lists(texts, max_size=3), st.booleans())
def test_what_is_typed_is_continued_or_refused(
    trained: Path, junk: bytes, lines: list[str], chat: bool
) -> None:
    typed = _lines(lines)[:5000] + b"\n" + junk
    keys = ["interactive=true", "max_new_tokens=2", *(["chat=true"] if chat else [])]
    with nothing_lost(trained):
        judge(run(inference, ["generate", str(trained / "run"), *keys], typed))
