"""Configuration: defaults <- YAML <- overrides, into frozen dataclasses that check themselves.

The only file that imports omegaconf. It imports `configs` alone, so every package may use it.
"""

import dataclasses
import difflib
import io
import keyword
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from configs.document import TOO_DEEP, find_fault, is_too_deep
from configs.hints import choices, entry_of, holds_text, section_of, type_name
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


def load_mapping(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file says, unchecked: for those who report it and decide nothing by it.

    Raises:
        ValueError: if it is missing, or no YAML of keys and values.
    """
    return _read(Path(path))


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
        section, entry = section_of(hint), entry_of(hint)
        if section is not None and isinstance(value, dict) and value:
            yield from _settings(section, value, origin, f"{key}.")
        elif entry is not None and isinstance(value, dict) and value:
            yield from _settings(_named(entry, value, origin, key), value, origin, f"{key}.")
        else:
            yield _Setting(key, hint, value, origin)


def _parse(text: str, hint: Any, origin: str) -> Any:
    """Read the text of an override: as it stands for a field that holds text, else as YAML."""
    if holds_text(hint):
        return None if type(None) in choices(hint) and text == "null" else text
    try:
        if is_too_deep(text):
            raise ValueError(TOO_DEEP)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{origin}: {' '.join(str(error).split())}") from None
    return cast(dict[str, Any], parsed)["value"]


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
        if isinstance(value, str) and "${" in value and not holds_text(setting.hint):
            raise TypeError  # omegaconf would let it pass
        _check_number(setting)
        return OmegaConf.merge(config, nested)
    except (OmegaConfBaseException, TypeError):
        wanted = type_name(setting.hint)
        whole = isinstance(value, float) and value.is_integer() and int in choices(setting.hint)
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
    kind = next((k for k in (int, float) if k in choices(hint) and isinstance(value, str)), None)
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
