import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from parallel.convert.pickled import load_pickled


class Calls:
    """A pickle that calls something when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


class Other:
    """A class that is nobody's data."""


def save(content: object, file: Path) -> Path:
    torch.save(content, file)
    return file


def test_tensors_and_plain_data_are_read(tmp_path: Path) -> None:
    file = save({"a": torch.arange(3), "b": [1, 2.5, None, torch.Size((2, 3))]}, tmp_path / "x.pt")
    found = load_pickled(file)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == [1, 2.5, None, (2, 3)]


def test_a_call_is_not_made(tmp_path: Path) -> None:
    file = save({"a": Calls(os.mkdir, str(tmp_path / "made"))}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds posix\.mkdir, which is not data"):
        load_pickled(file)
    assert not (tmp_path / "made").exists()


def test_a_class_of_somebody_is_named(tmp_path: Path) -> None:
    file = save({"a": Other()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds .*Other, which is not data"):
        load_pickled(file)


def stand_in(patch: pytest.MonkeyPatch, module_name: str, class_name: str) -> type:
    """Let a class be what is found where DeepSpeed has its own, until the patch is undone."""
    module = ModuleType(module_name)
    named = type(class_name, (), {"__module__": module_name, "member": None})
    setattr(module, class_name, named)
    while module_name:
        patch.setitem(sys.modules, module_name, module)
        module_name = module_name.rpartition(".")[0]
    return named


def test_deepspeeds_objects_are_read_without_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fragment = stand_in(patch, "deepspeed.utils.tensor_fragment", "fragment_address")()
        fragment.start, fragment.numel = 3, 5
        stage = stand_in(patch, "deepspeed.runtime.zero.config", "ZeroStageEnum")
        content = {"a": fragment, "new": Calls(stage), "old": Calls(getattr, stage, "member")}
        file = save(content, tmp_path / "x.pt")
    found = load_pickled(file)
    assert (found["a"].start, found["a"].numel) == (3, 5)
    assert type(found["new"]) is type(found["old"])


@pytest.mark.parametrize("owner", [torch.Tensor, "text"])
def test_attributes_are_looked_up_on_no_other_object(tmp_path: Path, owner: object) -> None:
    file = save({"a": Calls(getattr, owner, "__add__")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="which is not data"):
        load_pickled(file)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
        load_pickled(file)


def test_a_bare_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"x\.pt (cannot be read|holds)"):
        load_pickled(tmp_path / "x.pt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pt is missing"):
        load_pickled(tmp_path / "x.pt")
