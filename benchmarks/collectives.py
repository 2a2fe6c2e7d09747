"""Counts the collectives that a piece of work runs on this rank."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACES = ("c10d", "_c10d_functional")


def count_collectives(work: Callable[[], object]) -> int:
    """Run work and return how many gathers, reductions and other collectives it started."""
    counter = _Counter()
    with counter:
        work()
    return counter.found


class _Counter(TorchDispatchMode):
    """`CommDebugMode` would do, but it forbids `torch.autograd.grad` inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: int = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.found += func.namespace in NAMESPACES and "wait" not in func.__name__
        return func(*args, **(kwargs or {}))
