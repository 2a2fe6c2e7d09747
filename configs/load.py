"""Configuration: defaults <- YAML <- overrides, into frozen dataclasses that check themselves.

The only file that imports omegaconf. It imports `configs` alone, so every package may use it.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import itertools
import keyword
import math
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from configs.document import TOO_DEEP, find_fault, is_too_deep
from configs.quote import one_line, quoted

T = TypeVar("T")

LARGEST = 2**63
"""Whole numbers are below."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Text:
    """The right side of an override, not yet read as the type of its field."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    """One value for one key, and who said so."""

    key: str
    hint: Any
    value: Any
    origin: str


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Return the config: the defaults of `cls`, changed by a YAML file, changed by overrides.

    Nothing is interpolated: `${x}` means itself. Text fields take an override word for word, so
    that a prompt may hold colons, brackets and quotes.

    Args:
        cls: a frozen dataclass; its fields are scalars, Literals, lists or tuples of scalars, or
            dataclasses, each of them optional or not.
        path: a YAML file.
        overrides: `dotted.key=value`, as on the command line.

    Raises:
        ValueError: one line naming the key or file at fault, the value, and the remedy.
    """
    content = {} if path is None else _read(Path(path))
    return _build(cls, content, str(path or cls.__name__), overrides)


def load_part(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Return some sections of a YAML file, those that `cls` has; see `load`.

    Args:
        cls: a dataclass; keys of the file that it lacks are not looked at.
        path: a YAML file.
        overrides: of keys that `cls` has.
    """
    known = {field.name for field in dataclasses.fields(cast(Any, cls))}
    content = {name: value for name, value in _read(Path(path)).items() if name in known}
    return _build(cls, content, str(path), overrides)


def load_section(cls: type[T], path: str | Path, section: str, overrides: Sequence[str] = ()) -> T:
    """Return one section of a YAML file, or of a file that is that section alone; see `load`.

    Args:
        cls: the section's dataclass.
        path: a YAML file; what it says of other sections is not looked at.
        section: its key; overrides begin with it, `section.key=value`.
    """
    content = _read(Path(path))
    root: type[Any] = dataclasses.make_dataclass("Root", [(section, cls)])
    config = _build(root, {section: content.get(section, content)}, str(path), overrides)
    return cast(T, getattr(config, section))


def _build(cls: type[T], content: Mapping[Any, Any], origin: str, overrides: Sequence[str]) -> T:
    settings = list(_settings(cls, content, origin))
    for override in overrides:
        settings += _settings(cls, _nested(override), one_line(override))
    config = OmegaConf.structured(cls)
    for setting in settings:
        config = _set(config, setting)
    try:
        return cast(T, OmegaConf.to_object(config))
    except MissingMandatoryValue as error:
        raise ValueError(
            f"{origin}: required key {error.full_key} is missing; set it in the "
            f"file or add {error.full_key}=VALUE to the command"
        ) from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{origin}: {str(error).splitlines()[0]}") from None


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"no config file {path}{hint}")
    try:
        text = path.read_text(encoding="utf-8")
        fault = find_fault(text)
        content = {} if fault else OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # numbers and dates, too
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if fault is not None:
        raise ValueError(f"{path} {fault}")
    return cast(dict[Any, Any], content)


def _nested(override: str) -> dict[str, Any]:
    """Return `a.b=text` as {a: {b: text}}."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"{quoted(override)} is not an override: write key=value, without spaces")
    nested: Any = _Text(text)
    for name in reversed(names):
        nested = {name: nested}
    return cast(dict[str, Any], nested)


def _settings(
    cls: type, values: Mapping[Any, Any], origin: str, prefix: str = ""
) -> Iterator[_Setting]:
    """Yield each value with its dotted key and type; refuse the first key that does not exist."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), list(hints), n=1)
            remedy = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
            raise ValueError(f"{origin}: unknown key {prefix}{name}; {remedy}")
        hint, key = hints[name], f"{prefix}{name}"
        if isinstance(value, _Text):
            value = _parse(value.text, hint, origin)
        section, entry = _section(hint), _entry(hint)
        if section is not None and isinstance(value, dict) and value:
            yield from _settings(section, value, origin, f"{key}.")
        elif entry is not None and isinstance(value, dict) and value:
            yield from _settings(_named(entry, value, origin, key), value, origin, f"{key}.")
        else:
            yield _Setting(key, hint, value, origin)


def _parse(text: str, hint: Any, origin: str) -> Any:
    """Read the text of an override: as it stands for a field that holds text, else as YAML."""
    if _holds_text(hint):
        return None if type(None) in _choices(hint) and text == "null" else text
    try:
        if is_too_deep(text):
            raise ValueError(TOO_DEEP)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{origin}: {' '.join(str(error).split())}") from None
    return cast(dict[str, Any], parsed)["value"]


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _holds_text(hint: Any) -> bool:
    words = [word for choice in _choices(hint) for word in get_args(choice)]
    return str in _choices(hint) or any(isinstance(word, str) for word in words)


def _section(hint: Any) -> type | None:
    """Return the dataclass that a field holds, be it optional or not; None for a plain value."""
    found = (choice for choice in _choices(hint) if dataclasses.is_dataclass(choice))
    return cast(type | None, next(found, None))


def _entry(hint: Any) -> type | None:
    """Return the dataclass that a field holds many of, by name."""
    mappings = (get_args(choice) for choice in _choices(hint) if get_origin(choice) is dict)
    found = (held for _, held in mappings if dataclasses.is_dataclass(held))
    return cast(type | None, next(found, None))


def _named(entry: Any, names: Mapping[Any, Any], origin: str, key: str) -> type:
    """Return a dataclass with one such section for every name that a file or override gives."""
    for name in names:
        if not str(name).isidentifier() or keyword.iskeyword(str(name)):
            raise ValueError(f"{origin}: {key}.{name}: a name has only letters, digits and _")
    return dataclasses.make_dataclass("Names", [(name, entry | None) for name in names])


def _set(config: Any, setting: _Setting) -> Any:
    """Return the config with one value changed; the schema converts and checks it."""
    value, nested = setting.value, _literal(setting.value)
    for name in reversed(setting.key.split(".")):
        nested = {name: nested}
    try:
        if isinstance(value, str) and "${" in value and not _holds_text(setting.hint):
            raise TypeError  # omegaconf would let it pass
        _check_number(setting)
        return OmegaConf.merge(config, nested)
    except (OmegaConfBaseException, TypeError):
        wanted = _type_name(setting.hint)
        whole = isinstance(value, float) and value.is_integer() and int in _choices(setting.hint)
        remedy = f"; write {int(value)}" if whole else ""
        raise ValueError(
            f"{setting.origin}: {setting.key} must be {wanted}, got {quoted(value)}{remedy}"
        ) from None


def _check_number(setting: _Setting) -> None:
    """Refuse numbers that no setting can mean and arithmetic fails on."""
    value = _number(setting.value, setting.hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{setting.origin}: {setting.key} must be a finite number, got {value}")
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise ValueError(
            f"{setting.origin}: {setting.key} must be a number of at most 63 bits, got "
            f"{quoted(value)}"
        )


def _number(value: Any, hint: Any) -> Any:
    """Return the number that omegaconf would make of a text; else the value."""
    kind = next((k for k in (int, float) if k in _choices(hint) and isinstance(value, str)), None)
    try:
        return value if kind is None else kind(value)
    except ValueError:
        return value


def _literal(value: Any) -> Any:
    """Escape what omegaconf would take for an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value


def to_yaml(config: Any) -> str:
    """Return the resolved config as YAML; loading it back gives an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def help_text(cls: type, prefix: str = "") -> str:
    """Return one entry for each key of a config dataclass, written from its docstrings."""
    lines = []
    docs, hints = _field_docs(cls), get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, doc = f"{prefix}{field.name}", docs.get(field.name, "")
        default, section = _default(field), _section(hints[field.name])
        entry = _entry(hints[field.name])
        if section is not None:
            section_doc = inspect.getdoc(section) or ""
            note = " (absent by default)" if default == "absent" else ""
            lines.append(f"\n{name}.*{note}\n" + _indent(doc or section_doc.splitlines()[0]))
            lines.append(help_text(section, f"{name}."))
        elif entry is not None:
            lines.append(f"\n{name}.NAME.* (absent by default)\n" + _indent(doc))
            lines.append(help_text(entry, f"{name}.NAME."))
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
    if len(_choices(hint)) > 1:
        return " | ".join(_type_name(a) for a in _choices(hint) if a is not type(None))
    if dataclasses.is_dataclass(hint):
        return f"a section ({', '.join(field.name for field in dataclasses.fields(hint))})"
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
