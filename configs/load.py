"""Configuration: defaults <- YAML <- overrides, into frozen dataclasses that check themselves.

The only file that imports omegaconf. It imports nothing of ours, so every package may use it.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

T = TypeVar("T")


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Return the config: the defaults of `cls`, changed by a YAML file, changed by overrides.

    Args:
        cls: a frozen dataclass; its sections are dataclasses too.
        path: a YAML file.
        overrides: `dotted.key=value`, as on the command line.

    Raises:
        ValueError: one line naming the key or file at fault, the value, and the remedy.
    """
    merged = OmegaConf.create({})
    if path is not None:
        merged = _merge(cls, merged, _read(Path(path)), str(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{override!r} is not an override: write key=value, without spaces")
        try:
            one = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{override!r}: {_first_line(error)}") from None
        merged = _merge(cls, merged, one, override)
    try:
        return cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), merged)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path or cls.__name__}: {_first_line(error)}") from None


def _read(path: Path) -> Any:
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"no config file {path}{hint}")
    try:
        content = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(content):
        raise ValueError(f"{path} must hold keys and values, not a list")
    return content


def _merge(cls: type, merged: Any, addition: Any, origin: str) -> Any:
    """Add one source, checking it alone against the schema so that the blame is exact."""
    _refuse_unknown(cls, OmegaConf.to_container(addition), origin)
    try:
        OmegaConf.merge(OmegaConf.structured(cls), merged, addition)
    except ConfigKeyError as error:
        raise ValueError(f"{origin}: {_first_line(error)}") from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise ValueError(f"{origin}: {key}: {_first_line(error)}") from None
    return OmegaConf.merge(merged, addition)


def _refuse_unknown(cls: type, values: Any, origin: str, prefix: str = "") -> None:
    """Name the first key that the dataclass does not have, and the nearest one it has."""
    if not isinstance(values, dict):
        return
    sections = _sections(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise ValueError(f"{origin}: unknown key {prefix}{key}; {hint}")
        if key in sections:
            _refuse_unknown(sections[key], value, origin, f"{prefix}{key}.")


def _sections(cls: type) -> dict[str, type]:
    """Return the fields whose type is a dataclass, optional or not."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        for candidate in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(candidate):
                found[name] = cast(type, candidate)
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def to_yaml(config: Any) -> str:
    """Return the resolved config as YAML; loading it back gives an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def help_text(cls: type, prefix: str = "") -> str:
    """Return one entry for each key of a config dataclass, written from its docstrings."""
    lines = []
    docs, sections = _field_docs(cls), _sections(cls)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, doc = f"{prefix}{field.name}", docs.get(field.name, "")
        default = _default(field)
        if field.name in sections:
            section_doc = inspect.getdoc(sections[field.name]) or ""
            note = " (absent by default)" if default == "absent" else ""
            lines.append(f"\n{name}.*{note}\n" + _indent(doc or section_doc.splitlines()[0]))
            lines.append(help_text(sections[field.name], f"{name}."))
        else:
            lines.append(f"{name}: {_type_name(hints[field.name])} = {default}\n" + _indent(doc))
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


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_name(a) for a in get_args(hint) if a is not type(None))
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)


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
