"""Checkpoints that DeepSpeed's `engine.save_checkpoint` wrote, at stages 1 to 3, by any number of
ranks.

A rank's file holds its range of every flat group: float32 masters and moments. At stages 1 and 2
it says by `param_slice_mappings` which part of a parameter lies where in it. At stage 3 every
parameter is cut into as many equal parts as there are ranks, the last one padded, and a rank's
parts follow each other in the order of `param_shapes`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.weight_files import StoredTensor
from parallel.convert.beside import find_beside
from parallel.convert.contents import MOMENTS, Contents, counter, prefix_of
from parallel.convert.pickled import load_pickled

RANK_FILES = "*zero_pp_rank_*_mp_rank_*_optim_states.pt"
"""What every rank writes; the names begin with bf16_ in bfloat16."""
TENSORS = (
    "module",
    "param_shapes",
    "buffer_names",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "optimizer",
)
"""Keys of a model file that describe the tensors, or are them."""


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one rank stored of all flat groups, each list by group."""

    masters: Sequence[Tensor]
    """Its ranges (N,)."""
    states: Sequence[Mapping[str, Any]]
    """The inner optimizer's state of each; empty if no step has been made."""
    fragments: Sequence[Mapping[str, tuple[int, int]]]
    """By parameter: the first element in the range, and how many."""


def is_deepspeed(folder: Path) -> bool:
    """Whether a folder is a tag's, of a checkpoint as ranks save it."""
    return any(folder.glob(RANK_FILES))


def read_ranks(folder: Path) -> Contents:
    """Return the contents of a checkpoint that ranks of DeepSpeed wrote.

    Raises:
        ValueError: naming the file at fault, if one is missing, damaged or of a kind that cannot be
            read: model-parallel, with frozen parameters, or not Adam's.
    """
    files = _rank_files(folder)
    model = load_pickled(_model_file(folder))
    _check_model(model, folder)
    described = load_pickled(files[0])["optimizer_state_dict"]
    is_stage_3 = "fp32_flat_groups" in described
    shapes: list[Mapping[str, Any]] = model["param_shapes"]
    read = partial(_rank_3, shapes, len(files)) if is_stage_3 else _rank_12
    ranks = [read(file, rank) for rank, file in enumerate(files)]
    inner = described["optimizer_state_dict" if is_stage_3 else "base_optimizer_state"]
    step = _step(ranks[0].states, inner["param_groups"])
    prefix = prefix_of(name for names in shapes for name in names)
    weights, optimizer = _tensors(ranks, shapes, prefix, step, folder)
    settings = {key: value for key, value in model.items() if key not in TENSORS}
    return Contents(
        origin=folder,
        step=model["global_steps"],
        weights=weights,
        optimizer=optimizer,
        beside=find_beside(folder, folder.parent),
        prefix=prefix,
        deepspeed={**settings, "param_groups": inner["param_groups"]},
    )


def _tensors(
    ranks: Sequence[_Rank],
    shapes: Sequence[Mapping[str, Any]],
    prefix: str,
    step: float | None,
    folder: Path,
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Return weights and optimizer state by upstream name; no state if no step is known."""
    weights: dict[str, StoredTensor] = {}
    optimizer: dict[str, StoredTensor] = {}
    for group, names in enumerate(shapes):
        for full_name, size in names.items():
            name, shape = full_name.removeprefix(prefix), tuple(size)
            parts = list(_parts(ranks, group, full_name))
            _check_whole(name, shape, parts, folder)
            weights[name] = StoredTensor(shape, partial(_joined, shape, ranks, parts, None))
            if step is None:
                continue
            for key in MOMENTS:
                moment = partial(_joined, shape, ranks, parts, key)
                optimizer[f"{key}.{name}"] = StoredTensor(shape, moment)
            optimizer[f"step.{name}"] = counter(step)
    return weights, optimizer


def _rank_files(folder: Path) -> list[Path]:
    """Return the ranks' files in the order of ranks."""
    by_rank: dict[int, Path] = {}
    for file in folder.glob(RANK_FILES):
        found = re.search(r"pp_rank_(\d+)_mp_rank_(\d+)_", file.name)
        assert found is not None, "it matched the pattern"
        if int(found[2]) > 0:
            raise ValueError(f"{file}: checkpoints of model parallelism cannot be read")
        if int(found[1]) in by_rank:
            raise ValueError(
                f"{file} and {by_rank[int(found[1])].name} are of one rank: two runs saved here; "
                "remove the files of one of them"
            )
        by_rank[int(found[1])] = file
    first = load_pickled(by_rank[min(by_rank)])["optimizer_state_dict"]
    count = first["partition_count"]
    size = max(count) if isinstance(count, list) else count
    missing = sorted(set(range(size)) - by_rank.keys())
    if missing:
        raise ValueError(f"{folder}: the file of rank {missing[0]} of {size} is missing: copy it")
    return [by_rank[rank] for rank in range(size)]


def _model_file(folder: Path) -> Path:
    at_stage_3 = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    return at_stage_3 if at_stage_3.is_file() else folder / "mp_rank_00_model_states.pt"


def _check_model(model: Mapping[str, Any], folder: Path) -> None:
    frozen = [*(model.get("frozen_param_shapes") or ())]
    if frozen:
        raise ValueError(
            f"{folder}: {frozen[0]} was frozen, so it has no master and no moments here: only "
            "checkpoints in which all parameters are trained can be read"
        )
    if model.get("mp_world_size", 1) != 1:
        raise ValueError(f"{folder}: checkpoints of model parallelism cannot be read")


def _rank_12(file: Path, rank: int) -> _Rank:
    content = load_pickled(file)["optimizer_state_dict"]
    if "param_slice_mappings" not in content:
        raise ValueError(
            f"{file} does not say where its parameters lie (no param_slice_mappings): load it with "
            "a newer DeepSpeed and save it again"
        )
    masters = content["single_partition_of_fp32_groups"]
    fragments = [
        {name: (fragment.start, fragment.numel) for name, fragment in group.items()}
        for group in content["param_slice_mappings"]
    ]
    return _Rank(masters, _states(content["base_optimizer_state"], len(masters)), fragments)


def _rank_3(shapes: Sequence[Mapping[str, Any]], size: int, file: Path, rank: int) -> _Rank:
    content = load_pickled(file)["optimizer_state_dict"]
    masters = content["fp32_flat_groups"]
    fragments: list[dict[str, tuple[int, int]]] = []
    for group in shapes:
        fragments.append({})
        offset = 0
        for name, shape in group.items():
            numel = prod(shape)
            share = -(-numel // size)
            fragments[-1][name] = (offset, max(0, min(share, numel - rank * share)))
            offset += share
    return _Rank(masters, _states(content["optimizer_state_dict"], len(masters)), fragments)


def _states(inner: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """Return the inner optimizer's state of each of `count` groups."""
    return [inner["state"].get(group, {}) for group in range(count)]


def _step(states: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Return Adam's step; None if there are no moments, or not Adam's.

    torch keeps it in the state, DeepSpeed's fused Adam in the parameter groups.
    """
    if not all(set(MOMENTS) <= state.keys() for state in states):
        return None
    step = states[0].get("step", groups[0].get("step"))
    return None if step is None else float(step)


def _parts(ranks: Sequence[_Rank], group: int, name: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield rank, group, first element and number of elements of each part of a parameter."""
    for rank, stored in enumerate(ranks):
        if name in stored.fragments[group]:
            yield rank, group, *stored.fragments[group][name]


def _check_whole(
    name: str, shape: tuple[int, ...], parts: Sequence[tuple[int, int, int, int]], folder: Path
) -> None:
    found = sum(count for *_, count in parts)
    if found != prod(shape):
        raise ValueError(
            f"{folder}: the ranks hold {found} of the {prod(shape)} elements of {name}: the files "
            "are not of one checkpoint"
        )


def _joined(
    shape: tuple[int, ...],
    ranks: Sequence[_Rank],
    parts: Sequence[tuple[int, int, int, int]],
    key: str | None,
) -> Tensor:
    """Put the masters, or the moments that `key` names, of a parameter of a shape together."""
    flats = (
        ranks[rank].masters if key is None else _moments(ranks[rank], key) for rank, *_ in parts
    )
    slices = [
        flat[group].detach()[start : start + count]
        for flat, (_, group, start, count) in zip(flats, parts, strict=True)
    ]
    return torch.cat(slices).view(shape)


def _moments(rank: _Rank, key: str) -> list[Tensor]:
    return [state[key] for state in rank.states]
