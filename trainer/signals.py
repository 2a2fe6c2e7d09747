"""SIGTERM and SIGUSR1 ask for a clean end: a checkpoint after the current step, as a rule."""

import ctypes
import logging
import os
import signal
from types import FrameType

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl (prctl.h)."""


def stop_with_launcher() -> None:
    """Have this process sent SIGTERM when its parent ends, if that is torchrun; on Linux only.

    A torchrun that is killed outright, or by a signal that it does not handle, cannot tell its
    ranks, which would train on with nobody to watch them.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None and "TORCHELASTIC_RUN_ID" in os.environ:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopRequest:
    """Remembers whether this process was asked to stop; the loop tells the other ranks."""

    def __init__(self) -> None:
        self.is_set = False
        self.consequence = "saving after this step"
        """What is said to come of it."""
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        logger.warning("received %s: %s", signal.Signals(number).name, self.consequence)
