from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from parallel.checksum import CHUNK_BYTES, read_back
from parallel.tensor_file import DTYPES, tensor_file_bytes, write_tensor_file

TENSORS = {
    "of b": torch.randn(3, 5).to(torch.bfloat16),
    "a": torch.randn(7, 2, dtype=torch.float64),
    "step": torch.tensor(3.0),
    "none": torch.empty(0, 4),
    "turned": torch.randn(4, 6).T,
    "count": torch.tensor([1, 2, 3]),
}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensor_file(path, TENSORS, {"key": "välue"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"key": "välue"}


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_type_that_a_state_may_have_goes_there_and_back(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    write_tensor_file(tmp_path / "x.safetensors", {"x": tensor}, {})
    found = load_file(tmp_path / "x.safetensors")["x"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_the_checksum_is_of_what_the_file_holds_and_the_size_is_foretold(tmp_path: Path) -> None:
    large = {**TENSORS, "large": torch.randn(2 * CHUNK_BYTES // 4 + 3)}
    for number, tensors in enumerate((TENSORS, large)):
        path = tmp_path / str(number)
        written = write_tensor_file(path, tensors, {"a": "b"})
        assert written == read_back(path)
        assert written.size == path.stat().st_size == tensor_file_bytes(tensors, {"a": "b"})


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    first = write_tensor_file(tmp_path / "x", TENSORS, {})
    assert write_tensor_file(tmp_path / "y", dict(reversed(TENSORS.items())), {}) == first


def test_a_flipped_bit_changes_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x"
    written = write_tensor_file(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_back(path).checksum != written.checksum
