"""Strategies for what goes wrong with values, bytes and JSON."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS: list[Any] = [
    -(10**400), -(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**63 - 1, 2**64, 10**18, 10**400, -1e308,
    -0.5, -0.0, 5e-324, 1e-8, 0.5, 0.999999, 1.5, 1e18, 1e308, float("nan"), float("inf"),
    float("-inf"),
]  # fmt: skip
ODD_TEXTS = [
    "", " ", "x", "null", "true", "nan", "1e3", "0x10", "1_000", "07", "???", "${steps}", "${",
    "\\${a}", "${oc.env:HOME}", "..", "/", ".", "~", "-", "=", "a: b", "[", "{", "}", "é日本",
    "\u202e", "\x00", "\ud800", "\udcff", "a\nb", "a" * 5000, "/" * 3000, "../" * 50, "\t", "'",
    '"', "#", "&a", "*a",
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, [], {}, [[]], [None], [1, 2], [1, 2, 3], ["a", 1], {"a": 1}, {"": None},
    {1: 2}, {None: {}}, {"a": {"b": {"c": []}}}, *ODD_NUMBERS, *ODD_TEXTS,
]  # fmt: skip

odd_values: st.SearchStrategy[Any] = st.sampled_from(ODD_VALUES)


def flipped(data: bytes) -> st.SearchStrategy[bytes]:
    """Return the data with a few bytes changed, more often near its start."""
    last = max(0, len(data) - 1)
    places = st.one_of(st.integers(0, min(64, last)), st.integers(0, last))
    changes = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)

    def apply(pairs: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for place, mask in pairs:
            if changed:
                changed[place] ^= mask
        return bytes(changed)

    return changes.map(apply)


def truncated(data: bytes) -> st.SearchStrategy[bytes]:
    """Return the data cut short somewhere, or with something appended or inserted."""
    cut = st.integers(0, len(data)).map(lambda n: data[:n])
    longer = st.binary(min_size=1, max_size=16).map(lambda more: data + more)
    inserted = st.tuples(st.integers(0, len(data)), st.binary(min_size=1, max_size=8)).map(
        lambda pair: data[: pair[0]] + pair[1] + data[pair[0] :]
    )
    return st.one_of(cut, longer, inserted)


JUNK = st.one_of(
    st.just(b""),
    st.binary(min_size=1, max_size=200),
    st.sampled_from(
        [
            b"\x00" * 4096, b"\xff" * 64, b"\xef\xbb\xbf", b"\r\n\r\n", b"\n", b"{", b"[]",
            b"null", b"0", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"NaN",
            b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"\x80\x04\x95", b"PK\x03\x04",
            b"GGUF" + b"\xff" * 60, b"\xff" * 7 + b"\x7f{}", b"PAR1" + b"\x00" * 20 + b"PAR1",
            b"\xc3\x28", b"\xed\xa0\x80",
        ]
    ),
)  # fmt: skip
"""What no file here should hold."""


def damaged_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """Return the bytes of a file after some accident."""
    return st.one_of(flipped(data), truncated(data), JUNK)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to everything in a JSON value, sections before what they hold."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a copy of a JSON value with one place changed; what becomes `...` is deleted."""
    if not path:
        return change(value)
    key, *rest = path
    copy = value.copy()
    inner = changed(value[key], tuple(rest), change)
    if inner is not ...:
        copy[key] = inner
    else:
        del copy[key]
    return copy


@st.composite
def damaged_value(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON or YAML value with up to three places replaced, deleted, renamed or added."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add", "wrap"]))
        odd = draw(odd_values)
        if kind == "delete" and path:
            value = changed(value, path, lambda old: ...)
        elif kind == "add":
            name = draw(st.sampled_from(["unknown", "", "a.b", 0, None, True, "step", "é"]))
            value = changed(value, path, lambda old: _with(old, name, odd))  # noqa: B023
        elif kind == "wrap":
            value = changed(value, path, lambda old: [old])
        else:
            value = changed(value, path, lambda old: odd)  # noqa: B023
    return value


def _with(old: Any, name: Any, odd: Any) -> Any:
    return {**old, name: odd} if isinstance(old, dict) else {name: odd}


def damaged_json(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a JSON file after an accident to its bytes, or with values changed or missing."""
    value = json.loads(data)
    dumped = damaged_value(value).map(lambda odd: json.dumps(_plain(odd)).encode())
    return st.one_of(dumped, dumped, damaged_bytes(data))


def _plain(value: Any) -> Any:
    """Return a value that JSON has words for: its keys are texts."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
