import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from configs.command import ROOT
from data_pipelines.chat import encode_chat
from data_pipelines.tokenize import HuggingFaceTokenizer
from inference.__main__ import main
from inference.command import generate
from inference.config import GenerateConfig
from inference.interactive import interact
from inference.load import Loaded, load

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def loaded(exported: Path) -> Loaded:
    return load(exported, dtype=torch.float64, device="cpu")


@pytest.fixture
def chatty(loaded: Loaded, exported: Path) -> Loaded:
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    tokenizer.chat_template = TEMPLATE
    return replace(loaded, tokenizer=HuggingFaceTokenizer(tokenizer, 300))


def _config(**changes: Any) -> GenerateConfig:
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_at_eos": False} | changes
    return GenerateConfig(interactive=True, **settings)


def _interact(loaded: Loaded, text: str, **changes: Any) -> tuple[str, str]:
    out, notes = io.StringIO(), io.StringIO()
    interact(_config(**changes), loaded, io.StringIO(text), out, notes)
    return out.getvalue(), notes.getvalue()


def _alone(loaded: Loaded, prompt: str) -> str:
    out = io.StringIO()
    config = GenerateConfig(prompt=prompt, max_new_tokens=8, stop_at_eos=False, output="json")
    generate(config, loaded, out, out)
    text: str = json.loads(out.getvalue())["text"]
    return text


def _streamed(loaded: Loaded, prompt: str) -> str:
    out = io.StringIO()
    config = GenerateConfig(prompt=prompt, max_new_tokens=8, stop_at_eos=False)
    generate(config, loaded, out, io.StringIO())
    return out.getvalue().removeprefix(loaded.decode(loaded.encode(prompt)))


@pytest.mark.parametrize("way", [{}, {"strategy": "self_speculative", "exit_layer": 2}])
def test_each_line_is_continued_as_if_alone(loaded: Loaded, way: dict[str, Any]) -> None:
    out, notes = _interact(loaded, "def f\n\n  \nclass A", **way)
    assert out == _alone(loaded, "def f") + "\n" + _alone(loaded, "class A") + "\n"
    assert notes.count("[8 tokens, ") == 2
    assert ("of drafts accepted" in notes) == bool(way)


class _Interrupted(io.StringIO):
    """Ctrl-C comes while something is written, once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.writes, self.at = 0, at

    def write(self, text: str, /) -> int:
        self.writes += 1
        if self.writes == self.at:
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupt_ends_one_text_and_no_more(loaded: Loaded) -> None:
    out, notes = _Interrupted(9), io.StringIO()
    interact(_config(), loaded, io.StringIO("def f\nclass A\n"), out, notes)
    first, second, _ = notes.getvalue().split("\n")
    assert first.endswith(", stopped]")
    assert not first.startswith("[8 tokens")
    assert second.startswith("[8 tokens")
    assert out.getvalue().endswith(_alone(loaded, "class A") + "\n")


class _Hesitant(io.StringIO):
    """Ctrl-C comes before the first line."""

    hesitates = True

    def readline(self, size: int | None = -1, /) -> str:
        if self.hesitates:
            self.hesitates = False
            raise KeyboardInterrupt
        return super().readline()


def test_an_interrupt_at_the_prompt_says_how_to_end(loaded: Loaded) -> None:
    out, notes = io.StringIO(), io.StringIO()
    interact(_config(), loaded, _Hesitant("def f\n"), out, notes)
    assert notes.getvalue().startswith("\n(Ctrl-D ends)\n")
    assert out.getvalue() == _alone(loaded, "def f") + "\n"


def test_a_line_that_does_not_fit_costs_one_line(loaded: Loaded) -> None:
    out, notes = _interact(loaded, "x " * 300 + "\ndef f\n")
    assert notes.startswith("error: the prompt has")
    assert out == _alone(loaded, "def f") + "\n"


def test_chat_goes_on_from_what_was_said(chatty: Loaded) -> None:
    out, _ = _interact(chatty, "one\ntwo\n", chat=True)
    said = f"u:one;a:{_alone(chatty, 'u:one;a:')};u:two;a:"
    assert out == _streamed(chatty, "u:one;a:") + _streamed(chatty, said)


def test_a_conversation_forgets_its_beginning_when_it_is_full(chatty: Loaded) -> None:
    lines = "".join(f"{n} " + "def " * 50 + "\n" for n in range(6))
    _, notes = _interact(chatty, lines, chat=True)
    assert "[turns that no longer fit the context and are forgotten: " in notes
    assert notes.count("[8 tokens") == 6
    assert "error" not in notes


def test_chat_needs_a_template(loaded: Loaded, chatty: Loaded) -> None:
    with pytest.raises(ValueError, match="chat=true needs a chat template"):
        _interact(loaded, "one\n", chat=True)
    ids = encode_chat(chatty.tokenizer, [{"role": "user", "content": "one"}])
    assert ids == chatty.tokenizer.encode("u:one;a:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a"}, "interactive=true reads prompts itself: leave out prompt"),
        ({"prompts": "a"}, "interactive=true reads prompts itself: leave out prompts"),
        ({"output": "json"}, "interactive=true streams text: leave out output=json"),
        (
            {"compare": True, "strategy": "early_exit", "exit_layer": 1},
            "interactive=true streams text: leave out compare=true",
        ),
    ],
)
def test_what_would_not_be_shown_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def test_a_prompt_alone_may_be_a_message(chatty: Loaded, loaded: Loaded) -> None:
    out = io.StringIO()
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_at_eos": False, "output": "json"}
    config = GenerateConfig(prompt="one", chat=True, **settings)
    generate(config, chatty, out, out)
    assert json.loads(out.getvalue())["text"] == _alone(chatty, "u:one;a:")
    with pytest.raises(ValueError, match="chat=true needs a chat template"):
        generate(config, loaded, out, out)


def test_a_setting_that_does_not_fit_is_refused_before_a_line_is_read(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"exit_layer must be in 1\.\.3"):
        main(["generate", str(exported), "interactive=true", "strategy=early_exit", "exit_layer=9"])


def test_what_is_typed_has_to_be_text(loaded: Loaded) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8")
    with pytest.raises(ValueError, match="what was typed is not UTF-8 text"):
        interact(_config(), loaded, typed, io.StringIO(), io.StringIO())


@pytest.mark.e2e
def test_the_command_reads_a_pipe(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inference", "generate", str(exported), "interactive=true",
         "max_new_tokens=4", "stop_at_eos=false"],
        cwd=ROOT, input="def f\nclass A\n", capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[4 tokens") == 2
