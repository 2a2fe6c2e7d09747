"""What a YAML text must be before it is read: keys and values, not nested without end.

The parser in C that reads it calls itself for each level, and a file that holds 100,000 times `[`
would end the process without a word. Its events, which are looked at here, cost no such calls.
"""

import yaml

DEEPEST = 64
"""Levels of nesting; no config has more than ten."""
TOO_DEEP = f"is nested more than {DEEPEST} levels deep: write it flat"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find_fault(text: str) -> str | None:
    """Say in a clause why a text is not read as a config; None if it holds keys and values, or
    nothing.

    Raises:
        YAMLError: if it is no YAML.
    """
    if is_too_deep(text):
        return TOO_DEEP
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.ScalarEvent):
            return f"must hold keys and values, not {event.value:.40}"
        if isinstance(event, yaml.SequenceStartEvent):
            return "must hold keys and values, not a list"
        if isinstance(event, yaml.MappingStartEvent):
            return None
    return None


def is_too_deep(text: str) -> bool:
    """Return whether a text is nested too deeply to be read as YAML.

    Raises:
        YAMLError: if it is no YAML, as far as it was looked at.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            return True
    return False
