"""The most memory that a piece of work takes at once, on the CPU."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(job: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a job held at once, beside those there before.

    The profiler sees every allocation of torch's CPU allocator, so those inside operators too; not
    the scratch memory that matrix libraries allocate by themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        job()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
