"""Peak memory: of the accelerator, or of this process."""

import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most bytes in use between `begin` and `end`, over all such times.

    On an accelerator these are torch's own allocations. On a CPU it is the resident memory of the
    process, weights and libraries included; where the kernel keeps no peak that can be set back
    (elsewhere than on Linux), it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device

    def begin(self) -> None:
        """Forget the peak of whatever ran before."""
        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # sets VmHWM to the present size; see proc(5)
            except OSError:
                return  # a container may forbid it: then it is the peak since the beginning

    def end(self) -> None:
        """Note the peak since `begin`."""
        self.bytes = max(self.bytes, self._peak())

    def _peak(self) -> int:
        if self._device.type != "cpu":
            return int(torch.accelerator.max_memory_allocated(self._device))
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return resident if sys.platform == "darwin" else resident * 1024  # Linux counts KiB
