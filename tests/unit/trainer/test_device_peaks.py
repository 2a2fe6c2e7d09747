import pytest
import torch

from trainer.device_peaks import device_peak, peak_flops, peak_memory


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_known_device_is_found_by_its_drivers_name(name: str, teraflops: float) -> None:
    assert peak_flops(name, torch.bfloat16) == teraflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_a_device_that_only_looks_known_has_no_peak(name: str) -> None:
    assert peak_flops(name, torch.bfloat16) is None


def test_float32_is_slower_than_tf32_and_float64_is_not_known() -> None:
    name = "NVIDIA A100-SXM4-80GB"
    assert peak_flops(name, torch.float32) == 19.5e12
    assert peak_flops(name, torch.float32, tf32=True) == 156e12
    assert peak_flops(name, torch.float64) is None


def test_the_cpu_has_no_peak() -> None:
    assert device_peak(torch.device("cpu"), torch.float32) is None


def test_memory_on_the_cpu_is_in_bytes() -> None:
    # A process that has imported torch holds more than 64 MiB; counted in KiB it would seem less.
    assert 2**26 < peak_memory(torch.device("cpu")) < 2**40
