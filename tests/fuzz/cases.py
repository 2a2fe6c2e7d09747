"""How many cases of each kind, always the same ones: `make fuzz` asks for 1,000 in all."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

CASES = int(os.environ.get("SKIPSTONE_FUZZ", "60"))
"""All of them together; the usual tests try few."""


def cases(per_thousand: int) -> Callable[[Any], Any]:
    """Return what gives a test its share of the cases; equal runs try equal cases."""
    return settings(
        max_examples=max(1, round(CASES * per_thousand / 1000)),
        derandomize=True,
        database=None,
        deadline=None,  # a command that hangs is ended by a signal
        phases=[Phase.explicit, Phase.generate],  # shrinking a slow case takes minutes
        suppress_health_check=list(HealthCheck),
    )
