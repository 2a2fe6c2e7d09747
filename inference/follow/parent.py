"""A process that works for another one: out of its way, and not a second longer than it lives."""

import os
import threading
import time

NICENESS = 10
"""What is left of the processor by others, mostly."""
_SECONDS = 1.0


def work_for(parent: int) -> None:
    """Lower this process's priority, and end it as soon as its parent is another than `parent`.

    A parent that is killed outright cannot end its children; they go to another parent then.
    """
    os.nice(NICENESS)
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)
