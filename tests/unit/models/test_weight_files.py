import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.weight_files import INDEX, StoredTensor, stored_tensors, write_tensors

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


@pytest.mark.parametrize("place", ["../a.safetensors", "/a.safetensors", "", "..", 3, None])
def test_an_index_may_name_files_beside_it_only(tmp_path: Path, place: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(ValueError, match=r"a is said to be in .* not the name of a file beside"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "\x00"])
def test_what_is_no_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match=INDEX) as error:
        stored_tensors(tmp_path)
    assert "\n" not in str(error.value)
