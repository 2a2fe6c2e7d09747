"""`--help` of every command: each key of a config with its type, default and docstring."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any, cast, get_type_hints

from configs.hints import entry_of, section_of, type_name


def help_text(cls: type, prefix: str = "") -> str:
    """Return one entry for each key of a config dataclass, written from its docstrings."""
    lines = []
    docs, hints = _field_docs(cls), get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, doc = f"{prefix}{field.name}", docs.get(field.name, "")
        default, section = _default(field), section_of(hints[field.name])
        entry = entry_of(hints[field.name])
        if section is not None:
            section_doc = inspect.getdoc(section) or ""
            note = " (absent by default)" if default == "absent" else ""
            lines.append(f"\n{name}.*{note}\n" + _indent(doc or section_doc.splitlines()[0]))
            lines.append(help_text(section, f"{name}."))
        elif entry is not None:
            lines.append(f"\n{name}.NAME.* (absent by default)\n" + _indent(doc))
            lines.append(help_text(entry, f"{name}.NAME."))
        else:
            lines.append(f"{name}: {type_name(hints[field.name])} = {default}\n" + _indent(doc))
    return "\n".join(lines)


def _indent(doc: str) -> str:
    return textwrap.fill(
        " ".join(doc.split()), width=100, initial_indent="    ", subsequent_indent="    "
    )


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return "absent" if field.default is None else str(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "required"


def _field_docs(cls: type) -> dict[str, str]:
    """Return the string literal under each field: Python keeps it in the source only."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
    docs = {}
    for field, doc in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            docs[field.target.id] = str(doc.value.value)
    return docs
