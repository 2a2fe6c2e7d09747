"""DeepSpeed's universal checkpoints, which its engines load at any stage on any number of ranks.

A tag's folder holds `zero/NAME/` for every parameter, with its whole master and moments, and little
else. What it needs beside them differs by the stage that loads: all of it is written.
"""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.weight_files import StoredTensor
from parallel.convert.beside import find_beside, write_beside
from parallel.convert.contents import MOMENTS, Contents, counter, prefix_of, progress, read_master
from parallel.convert.deepspeed_ranks import TENSORS
from parallel.convert.pickled import load_pickled

LATEST_UNIVERSAL = "latest_universal"
"""Names the tag that `load_checkpoint` takes."""
MODEL_FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""What stages 1 and 2, and stage 3, look for."""
PARAM, CAT_DIM = "param", "cat_dim"
"""Keys of a parameter's files."""
RUN = "run"
"""Folder in a tag's, where we keep what DeepSpeed has no place for."""
VERSION = 0.4
"""Of the universal format."""


def is_universal(folder: Path) -> bool:
    """Whether a folder is a tag's, of a universal checkpoint."""
    return (folder / "zero").is_dir()


def read_universal(folder: Path) -> Contents:
    """Return the contents of a universal checkpoint, ours or of DeepSpeed's own `ds_to_universal`.

    Raises:
        ValueError: naming the file at fault, if one is missing, damaged or holds more than data.
    """
    described = load_pickled(folder / "zero" / "optimizer_state.pt")
    files = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
    model: dict[str, Any] = load_pickled(files[0]) if files else {}
    step = _common_step(described)
    # Made from stage 3, tensors are flat.
    shapes = {
        name: tuple(s) for group in model.get("param_shapes") or () for name, s in group.items()
    }
    weights: dict[str, StoredTensor] = {}
    optimizer: dict[str, StoredTensor] = {}
    parts = sorted(part for part in (folder / "zero").iterdir() if part.is_dir())
    prefix = prefix_of(part.name for part in parts)
    for part in parts:
        name = part.name.removeprefix(prefix)
        shape = shapes.get(part.name)
        weights[name] = _stored(part / "fp32.pt", shape)
        if not (part / "exp_avg.pt").is_file():
            continue
        for key in MOMENTS:
            optimizer[f"{key}.{name}"] = _stored(part / f"{key}.pt", shape)
        own = part / "step.pt"
        count = float(load_pickled(own)) if own.is_file() else step
        if count is None:
            raise ValueError(f"{own} is missing, and optimizer_state.pt has no step either")
        optimizer[f"step.{name}"] = counter(count)
    settings = {key: value for key, value in model.items() if key not in TENSORS}
    return Contents(
        origin=folder,
        step=int(model.get("global_steps", step or 0)),
        weights=weights,
        optimizer=optimizer,
        beside=find_beside(folder / RUN, folder, folder.parent),
        prefix=prefix,
        deepspeed={**settings, "param_groups": described.get("param_groups", [])},
    )


def _common_step(described: Mapping[str, Any]) -> float | None:
    """Return the step that stage 3 keeps for all parameters together, or the groups', if any."""
    states = described.get("optimizer_state_dict", {}).get("state", {})
    groups = described.get("param_groups", [])
    step = states.get(0, {}).get("step", groups[0].get("step") if groups else None)
    return None if step is None else float(step)


def _stored(file: Path, shape: tuple[int, ...] | None) -> StoredTensor:
    """Return the tensor of a file in a shape, which is its own if none is given."""
    own = _tensor(file)
    if shape is None:
        return StoredTensor(tuple(own.shape), partial(_tensor, file))
    if own.numel() != prod(shape):
        raise ValueError(f"{file} has {own.numel()} elements, but its parameter is {shape}")
    return StoredTensor(shape, lambda: _tensor(file).view(shape))


def _tensor(file: Path) -> Tensor:
    """Return a parameter's tensor (any shape): plain if stage 3 saved it, else in a dictionary."""
    content = load_pickled(file)
    tensor = content.get(PARAM) if isinstance(content, dict) else content
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{file} holds no tensor: save the checkpoint again")
    return tensor


def write_universal(contents: Contents, folder: Path) -> None:
    """Write a universal checkpoint of one tag, and the file that names it.

    Without moments in the source there are zeros, with which Adam begins.

    Args:
        contents: of any source.
        folder: exists, and is empty.
    """
    tag = folder / f"global_step{contents.step}"
    tag.mkdir()
    for name in progress(contents.weights, "parameters"):
        _write_parameter(contents, name, tag / "zero" / f"{contents.prefix}{name}")
    torch.save(_optimizer_state(contents), tag / "zero" / "optimizer_state.pt")
    model = _model_state(contents)
    for file in MODEL_FILES:
        torch.save(model, tag / file)
    (tag / RUN).mkdir()
    write_beside(contents.beside, tag / RUN, contents.step)
    (folder / LATEST_UNIVERSAL).write_text(tag.name)


def _write_parameter(contents: Contents, name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    master = read_master(contents.weights[name])
    _save(master, folder / "fp32.pt")
    for key in MOMENTS:
        stored = contents.optimizer.get(f"{key}.{name}")
        moment = torch.zeros_like(master) if stored is None else read_master(stored)
        _save(moment, folder / f"{key}.pt")
    torch.save(_step(contents, name), folder / "step.pt")


def _save(tensor: Tensor, file: Path) -> None:
    # torch.save writes all of the memory that a tensor is a part of.
    whole = tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    torch.save({PARAM: whole.contiguous(), CAT_DIM: 0}, file)


def _step(contents: Contents, name: str) -> Tensor:
    """Return Adam's step of a parameter, a scalar."""
    stored = contents.optimizer.get(f"step.{name}")
    return torch.zeros(()) if stored is None else read_master(stored)


def _optimizer_state(contents: Contents) -> dict[str, Any]:
    """Return what an engine reads beside the parameters' files.

    An engine gives what it finds in the n-th parameter group to its own n-th group, and leaves a
    group alone, weights and all, if there is no n-th here. So there are as many as there can be.
    Those of the source come first; stage 3 takes the first of its own list for all groups, so that
    holds what they agree on. Fused Adam keeps its step in the group.
    """
    names = list(contents.weights)
    step = _step(contents, names[0])
    own = {"params": [], "step": int(step)}
    groups = [{**group, **own} for group in contents.deepspeed.get("param_groups", ())]
    common = {
        key: value
        for key, value in (groups[0] if groups else own).items()
        if all(key in group and group[key] == value for group in groups)
    }
    return {
        "ds_version": contents.deepspeed.get("ds_version", version("deepspeed")),
        "param_groups": groups + [own] * (len(names) - len(groups)),
        "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": [common]},
    }


def _model_state(contents: Contents) -> dict[str, Any]:
    """Return what an engine reads first: its position, the scheduler's state, client state."""
    found = {key: value for key, value in contents.deepspeed.items() if key != "param_groups"}
    return {
        # What DeepSpeed's own schedulers keep, which count from -1.
        "lr_scheduler": {"last_batch_iteration": contents.step - 1},
        "global_steps": contents.step,
        "skipped_steps": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_version": version("deepspeed"),
        **found,
        "module": {},
        "universal_checkpoint_info": {"universal_checkpoint_version": VERSION},
    }
