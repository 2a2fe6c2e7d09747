import logging
from pathlib import Path

import pytest

from inference.fast import compiler


@pytest.fixture(autouse=True)
def _found_anew() -> object:
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


def test_without_a_compiler_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        assert compiler.library() is None
    assert "no C++ compiler" in caplog.text


def test_a_compiler_that_fails_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "out of order" >&2; exit 1; }\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.library() is None
    assert "could not be made: out of order" in caplog.text
    assert not list((tmp_path / "skipstone").iterdir())


def test_kernels_are_compiled_once_and_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        if compiler.library() is None:
            pytest.skip("needs a C++ compiler")
        compiler.library.cache_clear()
        assert compiler.library() is not None
    assert caplog.text.count("compiled kernels") == 1
    assert len(list((tmp_path / "skipstone").iterdir())) == 1
