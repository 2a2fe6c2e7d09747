"""What the type of a field allows: text, a section, many sections by name."""

import dataclasses
import types
from typing import Any, Literal, Union, cast, get_args, get_origin


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def holds_text(hint: Any) -> bool:
    """Whether a field may hold text."""
    words = [word for choice in choices(hint) for word in get_args(choice)]
    return str in choices(hint) or any(isinstance(word, str) for word in words)


def section_of(hint: Any) -> type | None:
    """Return the dataclass that a field holds, be it optional or not; None for a plain value."""
    found = (choice for choice in choices(hint) if dataclasses.is_dataclass(choice))
    return cast(type | None, next(found, None))


def entry_of(hint: Any) -> type | None:
    """Return the dataclass that a field holds many of, by name."""
    mappings = (get_args(choice) for choice in choices(hint) if get_origin(choice) is dict)
    found = (held for _, held in mappings if dataclasses.is_dataclass(held))
    return cast(type | None, next(found, None))


def type_name(hint: Any) -> str:
    """Return a field's type in the words of a user."""
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    if len(choices(hint)) > 1:
        return " | ".join(type_name(a) for a in choices(hint) if a is not type(None))
    if dataclasses.is_dataclass(hint):
        return f"a section ({', '.join(field.name for field in dataclasses.fields(hint))})"
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)
