import ctypes
import subprocess
import sys

import pytest

from configs.command import ROOT

HEAPS = """
import ctypes, sys, threading
from parallel.host_memory import keep_host_memory
if sys.argv[1] == "kept":
    keep_host_memory()
barrier = threading.Barrier(4)
def work():
    block = bytearray(1 << 16)  # less than what is mapped by itself
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="a matter of glibc")
def test_threads_share_one_heap() -> None:
    heaps = {}
    for name in ("kept", "by default"):
        command = [sys.executable, "-c", HEAPS, name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        heaps[name] = done.stdout.count("<heap nr=")
    assert heaps["kept"] == 1 < heaps["by default"]
