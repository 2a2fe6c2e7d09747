"""Keep the memory that tensors on the CPU give back, for the tensors of the next step.

By default the C library returns every large block to the system at once. The next step then asks
for it again and the system clears it page by page: a tenth of a step's time. It also gives every
thread a heap of its own: what the backward pass frees in one, the forward pass cannot use in
another, and in a run of weeks each of them grows to the most that its thread ever held.
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt (malloc.h)."""
LARGEST_KEPT = 1 << 30
"""Bytes; blocks above are still mapped and unmapped one by one."""


def keep_host_memory() -> None:
    """Let this process keep freed blocks, all in one heap, in huge pages where there are any.

    To be called before there are threads.

    It changes nothing where the C library has no `mallopt`, which is a matter of glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read at torch's first allocation of 2 MiB
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(TRIM_THRESHOLD, 2 * LARGEST_KEPT - 1)
