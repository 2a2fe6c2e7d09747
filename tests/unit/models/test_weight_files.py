from pathlib import Path

import pytest
import torch

from models.weight_files import StoredTensor, stored_tensors, write_tensors

WHOLE = {"a": torch.arange(24.0).view(4, 6), "b": torch.arange(5.0)}


@pytest.mark.parametrize("max_bytes", [10**6, 10])
def test_a_part_is_what_the_slices_cut_from_the_whole(tmp_path: Path, max_bytes: int) -> None:
    write_tensors(WHOLE.items(), tmp_path, dtype=torch.float32, max_shard_bytes=max_bytes)
    stored = stored_tensors(tmp_path)
    for name, slices in (("a", (slice(1, 3), slice(2, 6))), ("b", (slice(4, 5),))):
        assert torch.equal(stored[name].part(slices), WHOLE[name][slices])


def test_what_is_only_read_whole_is_cut_afterwards() -> None:
    stored = StoredTensor((4, 6), lambda: WHOLE["a"])
    assert torch.equal(stored.part((slice(0, 2), slice(3, 4))), WHOLE["a"][:2, 3:4])
