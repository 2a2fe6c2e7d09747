"""SIGTERM and SIGUSR1 ask for a clean end: a checkpoint after the current step, as a rule."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequest:
    """Remembers whether this process was asked to stop; the loop tells the other ranks."""

    def __init__(self, consequence: str = "saving after this step") -> None:
        self.is_set = False
        self._consequence = consequence
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        logger.warning("received %s: %s", signal.Signals(number).name, self._consequence)
