"""The kernels of `native/`, compiled once for this machine; nobody needs them, or a compiler.

A C++ compiler makes them in seconds, because they include nothing of torch. They share its OpenMP
runtime: a second one would have threads of its own, that fight for the same cores.
"""

import ctypes
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w")

_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None, logged once, where they cannot be had."""
    compiler = _compiler()
    if sys.platform != "linux" or compiler is None:
        _log.info("no C++ compiler for this system was found: decoding takes torch's kernels")
        return None
    try:
        return _load(_built(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("decoding takes torch's kernels, ours could not be made: %s", _last(error))
        return None


def _compiler() -> list[str] | None:
    """Return the command of `CXX`, which torch heeds too, or of a compiler on the path."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [named] if named else [[name] for name in ("c++", "g++", "clang++")]
    return next((each for each in found if shutil.which(each[0])), None)


def _built(compiler: list[str]) -> Path:
    """Return the library's file, compiled unless it is there; its name says what it is made of."""
    path = _folder() / f"kernels-{_fingerprint(compiler)}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = [*compiler, *FLAGS, str(SOURCES / "steps.cpp"), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        made.replace(path)  # whole, or not at all: ranks may compile at once
    _log.info("compiled kernels for this processor in %.1f s", time.perf_counter() - began)
    return path


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipstone"


def _fingerprint(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True).stdout
    sources = [file.read_bytes() for file in sorted(SOURCES.iterdir())]
    cpu = re.search(rb"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_bytes(), re.M)
    flags = " ".join((*compiler, *FLAGS)).encode()
    parts = [version, flags, cpu.group() if cpu else b"", *sources]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        OSError: if that brings a second OpenMP runtime.
    """
    before = _runtimes()
    kernels = ctypes.CDLL(str(path))
    if before and _runtimes() != before:
        raise OSError(f"torch's OpenMP runtime {before} is not the compiler's {_runtimes()}")
    for dtype in ("float", "bf16"):
        of_linear, of_layers = (getattr(kernels, f"skip_{n}_{dtype}") for n in ("linear", "layers"))
        of_linear.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64]
        of_layers.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64, *[ctypes.c_void_p] * 3]
        of_linear.restype = of_layers.restype = None
    return kernels


def _runtimes() -> set[str]:
    """Return the files of the OpenMP runtimes in this process."""
    return set(re.findall(r"\S*/lib(?:g|i)?omp\S*", Path("/proc/self/maps").read_text()))


def _last(error: Exception) -> str:
    text = str(getattr(error, "stderr", None) or error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
