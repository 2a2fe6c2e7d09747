"""Configs and overrides that nobody meant to write, given to every command that takes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.hints import section_of
from data_pipelines.__main__ import main as prepare
from inference.__main__ import main as inference
from inference.commands import COMMANDS
from inference.config import GenerateConfig
from inference.perplexity import PerplexityConfig
from inference.verify_config import VerifyConfig
from parallel.convert.__main__ import main as convert
from tests.e2e.runs import write_config
from tests.fuzz.cases import cases
from tests.fuzz.command import judge, run
from tests.fuzz.damage import ODD_TEXTS, damaged_bytes, damaged_value, odd_values
from tests.fuzz.folders import nothing_lost
from trainer.__main__ import main as train
from trainer.config import PretrainConfig

WHOLE: dict[str, Any] = {
    "spikes": {"policy": "skip", "loss_deviations": 8.0, "window": 20, "at_most": 2},
    "parallel": {"zero": {"stage": 2}, "device": "cpu", "timeout_seconds": 60.0},
    "init_from": None,
    "loss_chunk_tokens": 64,
}
"""Sections that the usual test config does without."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its data, and a folder that stands where its run would go."""
    folder = tmp_path_factory.mktemp("configs")
    write_config(folder, **WHOLE)
    (folder / "precious").mkdir()
    (folder / "precious" / "notes.txt").write_text("months of work")
    return folder


@st.composite
def texts(draw: st.DrawFn, base: dict[str, Any]) -> bytes:
    """Return the bytes of a YAML file: odd values, odd YAML, or no YAML at all."""
    kind = draw(st.sampled_from(["value", "value", "value", "value", "yaml", "bytes"]))
    if kind == "value":
        dumped = yaml.safe_dump(draw(damaged_value(base)), allow_unicode=True)
        return dumped.encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(base)
    if kind == "bytes":
        return draw(damaged_bytes(text.encode()))
    line = draw(st.sampled_from(ODD_LINES))
    lines = text.splitlines()
    lines.insert(draw(st.integers(0, len(lines))), line)
    return "\n".join(lines).encode()


LAUGHS = "z: &z [x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]"
    for old, new in zip("zabcdefgh", "abcdefghi", strict=True)
)
"""A billion values in ten lines."""
ODD_LINES = [
    "steps: 1", "steps: 2\nsteps: 3", "&a x: *a", "x: &a [*a]", "model: &m {a: *m}",
    "<<: {steps: 4}", "<<: *nothing", "\tsteps: 1", "? [1, 2]\n: 3", "? {a: 1}\n: 3", "--- ",
    "...", "%YAML 9.9", "steps: !!int x", "steps: !!python/object/apply:os.system ['true']",
    "run_folder: !!binary aGk=", "seed: 2020-01-01", "seed: 12:30:45", "seed: 0o17", "seed: 1__0",
    "seed: ~", "a: !!set {x}", "log_every: !!float nan", "- 1", "[" * 2000, "{a: " * 2000,
    "x: " + "[" * 500 + "]" * 500, "x: " + "9" * 5000, "seed: " + "9" * 5000, LAUGHS,
]  # fmt: skip


def keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, sections too."""
    for name, hint in get_type_hints(cls).items():
        yield f"{prefix}{name}"
        section = section_of(hint)
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")


KEYS = {
    "train": list(keys(PretrainConfig)),
    "generate": list(keys(GenerateConfig)),
    "verify": list(keys(VerifyConfig)),
    "perplexity": list(keys(PerplexityConfig)),
    **{name: list(keys(command.config)) for name, command in COMMANDS.items()},
}
ODD_OVERRIDES = [
    "", "=", "=x", "a", "a..b=1", ".=1", ".a=1", "a.=1", "model.model.model=1", "a.b.c.d.e.f=1",
    "é=1", " steps = 3", "steps==3", "steps=", "steps", "--steps=3", "--", "-x", "model=1",
    "model=[]", "model={}", "model={vocab_size: 1}", "data=null", "data.source=stdlib",
    "steps.x=1", "x" * 5000, "x" * 5000 + "=1", "a." * 2000 + "b=1", "steps=" + "[" * 3000,
    "steps=" + "9" * 5000, "stop=[", "stop=['a', 1]", "stop=[a,,b]", "skip_attn=[1,[2]]",
    "skip_attn=1..3", "prompts=", "prompt=", "config=", "tuned=", "\udcff=1", "steps=\udcff",
]  # fmt: skip


@st.composite
def overrides(draw: st.DrawFn, command: str) -> list[str]:
    """Return a few `key=value`, of which some are neither."""
    known = st.sampled_from(KEYS[command])
    spelt = st.one_of(odd_values.map(_spell), st.sampled_from(ODD_TEXTS), st.text(max_size=12))
    given_ = st.tuples(known, spelt).map(lambda pair: f"{pair[0]}={pair[1]}")
    some = st.one_of(given_, given_, given_, st.sampled_from(ODD_OVERRIDES), st.text(max_size=20))
    return [_argument(each) for each in draw(st.lists(some, min_size=1, max_size=3))]


def _spell(value: Any) -> str:
    return str(value) if isinstance(value, str) else yaml.safe_dump(value, width=1e9).split("\n")[0]


def _argument(text: str) -> str:
    """Return what a command line can hold: no null, and surrogates only for stray bytes."""
    plain = (c if not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" else "?" for c in text)
    return "".join(plain).replace("\x00", "")


@cases(160)
@given(st.data())
def test_a_config_that_makes_no_sense_is_refused(folder: Path, data: st.DataObject) -> None:
    base = yaml.safe_load((folder / "config.yaml").read_text())
    path = folder / "case.yaml"
    path.write_bytes(data.draw(texts(base)))
    with nothing_lost(folder):
        judge(run(train, [str(path), "--check"]))


@cases(100)
@given(st.data())
def test_an_override_that_makes_no_sense_is_refused(folder: Path, data: st.DataObject) -> None:
    path = str(folder / "config.yaml")
    with nothing_lost(folder):
        judge(run(train, [path, "--check", *data.draw(overrides("train"))]))


@cases(50)
@given(st.data())
def test_a_generate_config_that_makes_no_sense_is_refused(
    folder: Path, data: st.DataObject
) -> None:
    base = {
        "strategy": "self_speculative", "exit_layer": 2, "num_speculations": 4, "temperature": 0.6,
        "top_p": 0.9, "top_k": 5, "stop": ["a"], "max_new_tokens": 8, "prompt": "x", "seed": 1,
    }  # fmt: skip
    path = folder / "generate.yaml"
    path.write_bytes(data.draw(texts(base)))
    with nothing_lost(folder):
        judge(run(inference, ["generate", str(folder / "precious"), f"config={path}"]))


@cases(70)
@given(st.data())
def test_keys_of_inference_that_make_no_sense_are_refused(
    folder: Path, data: st.DataObject
) -> None:
    command = data.draw(st.sampled_from([name for name in KEYS if name != "train"]))
    with nothing_lost(folder):
        judge(run(inference, [command, str(folder / "precious"), *data.draw(overrides(command))]))


@cases(20)
@given(st.data())
def test_arguments_that_make_no_sense_are_refused(folder: Path, data: st.DataObject) -> None:
    some = st.one_of(
        st.sampled_from([str(folder), str(folder / "config.yaml"), *ODD_OVERRIDES, *ODD_TEXTS]),
        st.text(max_size=8),
        st.sampled_from([*KEYS, "export", "--check", "to=hf", "folder"]),
    )
    arguments = data.draw(st.lists(some.map(_argument), min_size=1, max_size=4))
    main = data.draw(st.sampled_from([train, inference, prepare, convert]))
    with nothing_lost(folder):
        judge(run(main, arguments))
