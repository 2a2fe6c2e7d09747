"""Where a sequence ends: at an end-of-sequence token, or at the token that completes a string."""

from collections.abc import Sequence

from inference.generation import Round, Settings, up_to_eos
from inference.stop import first_stop
from inference.stream import settled

CONTEXT = 16
"""So many tokens of the prompt decide how the first new ones look: spaces, parts of characters."""


class Ending:
    """Watches one sequence grow; what ends it is a function of its tokens, not of the rounds."""

    def __init__(self, settings: Settings, prompt_ids: Sequence[int]) -> None:
        self.is_over = False
        """Whether the tokens so far end the sequence."""
        self.eos_ids = settings.eos_ids
        self._stop = settings.stop
        self._ids = list(prompt_ids[-CONTEXT:])
        self._start = len(settled(self._stop.decode, self._ids)) if self._stop else 0

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens up to the one that ends the sequence, which is kept."""
        kept = list[int]()
        for token in tokens:
            kept.append(token)
            self._ids.append(token)
            if token in self.eos_ids or self._has_stopped():
                self.is_over = True
                break
        return kept

    def _has_stopped(self) -> bool:
        """Decode all new tokens: only so is it sure how they look, and it costs little."""
        if self._stop is None:
            return False
        text = settled(self._stop.decode, self._ids)
        return first_stop(text, self._stop.strings, self._start) is not None


def end_round(
    ending: Ending, tokens: Sequence[int], drafted: Sequence[int], seconds: float
) -> Round:
    """Return a round of kept drafts and one more token, cut where the sequence ends.

    Drafts beyond a drafted end were never in question and are not counted.
    """
    kept = ending.add(tokens)
    accepted = min(len(tokens) - 1, len(kept))
    if accepted == len(kept):
        return Round(kept, accepted, accepted, seconds)
    return Round(kept, len(up_to_eos(list(drafted), ending.eos_ids)), accepted, seconds)
