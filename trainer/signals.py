"""SIGTERM and SIGUSR1 ask for a checkpoint and a clean end after the current step."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequest:
    """Remembers whether this process was asked to stop; the loop tells the other ranks."""

    def __init__(self) -> None:
        self.is_set = False
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        logger.warning("received %s: saving after this step", signal.Signals(number).name)
