"""What a device could do at best, and what a process holds: for MFU and the memory curve."""

import resource
import sys
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense matrix FLOP/s of one device, from the maker's data sheet (no sparsity)."""

    half: float
    """bfloat16 and float16 with float32 accumulation."""
    tf32: float
    """float32 that PyTorch may round to TF32 (`torch.set_float32_matmul_precision`)."""
    single: float
    """float32."""


PEAKS: dict[tuple[str, ...], Peak] = {
    ("B200",): Peak(2250e12, 1125e12, 75e12),
    ("H200", "NVL"): Peak(835.5e12, 417.5e12, 60e12),
    ("H200",): Peak(989.5e12, 494.7e12, 67e12),
    ("GH200",): Peak(989.5e12, 494.7e12, 67e12),
    ("H100", "NVL"): Peak(835.5e12, 417.5e12, 60e12),
    ("H100", "PCIe"): Peak(756e12, 378e12, 51e12),
    ("H100",): Peak(989.5e12, 494.7e12, 67e12),
    ("A100",): Peak(312e12, 156e12, 19.5e12),
    ("L40S",): Peak(362e12, 183e12, 91.6e12),
    ("L40",): Peak(181e12, 90.5e12, 90.5e12),
    ("L4",): Peak(121e12, 60e12, 30.3e12),
    ("A10",): Peak(125e12, 62.5e12, 31.2e12),
    ("RTX", "5090"): Peak(209.5e12, 104.8e12, 104.8e12),
    ("RTX", "4090"): Peak(165.2e12, 82.6e12, 82.6e12),
    ("RTX", "3090"): Peak(71e12, 35.6e12, 35.6e12),
    ("MI300X",): Peak(1307e12, 654e12, 163.4e12),
}
"""By words of the device's name; of several that fit, the first, so the special come first."""


def peak_flops(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the peak FLOP/s of one device, or None where it is not known (as on a CPU).

    Args:
        device_name: as the driver says it, such as "NVIDIA H100 80GB HBM3".
        dtype: what the matrix products compute in.
        tf32: whether float32 products may be rounded to TF32.
    """
    words = device_name.replace("-", " ").split()
    if "Laptop" in words or "MIG" in words:  # less than the device the name says
        return None
    for name, peak in PEAKS.items():
        if all(part in words for part in name):
            if dtype in (torch.bfloat16, torch.float16):
                return peak.half
            if dtype == torch.float32:
                return peak.tf32 if tf32 else peak.single
    return None


def device_name(device: torch.device) -> str:
    """Return the name of a device as its driver says it; of a CPU, "cpu"."""
    if device.type == "cpu":
        return "cpu"
    return str(torch.get_device_module(device).get_device_name(device))


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of a device for products in `dtype`, or None where unknown."""
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_flops(device_name(device), dtype, tf32=tf32)


def peak_memory(device: torch.device) -> int:
    """Return the most memory this process has held, in bytes: the accelerator's, or resident."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux counts KiB
