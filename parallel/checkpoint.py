"""Sharded checkpoints: safetensors shards and JSON, readable by any number of ranks.

Every rank writes its shards through torch's distributed checkpoint (DCP) with safetensors as the
storage, so nothing in a checkpoint is a pickle. A checkpoint is written to `step_N.tmp`, renamed,
and only then named in `latest`; an old one is never touched before the new one stands.
"""

import json
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from models.llama import Llama
from parallel.manifest import check_tensors, read_manifest, write_manifest

logger = logging.getLogger(__name__)

CHECKPOINTS, LATEST = "checkpoints", "latest"
"""In a run: the folder of its checkpoints; in that, the file that names the newest."""
MODEL, OPTIMIZER, TOKENIZER, STATE = "model", "optimizer", "tokenizer", "state.json"
"""Parts of one checkpoint."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return where the checkpoint after `step` optimiser steps lives."""
    return checkpoints / f"step_{step:08d}"


def latest(checkpoints: Path) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none yet."""
    pointer = checkpoints / LATEST
    return checkpoints / pointer.read_text().strip() if pointer.is_file() else None


class Checkpointer:
    """Writes checkpoints into one folder, at most one at a time."""

    def __init__(self, checkpoints: Path, *, keep_last: int, asynchronous: bool) -> None:
        self.checkpoints = checkpoints
        self.keep_last = keep_last
        # A group of its own: collectives of a background save must not mix with the step's.
        self._group = dist.new_group(backend="gloo")
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        write_extras: Callable[[Path], None],
    ) -> None:
        """Save shards of this rank; every rank calls it with the same step.

        Args:
            step: finished optimiser steps.
            weights: parameters by upstream name.
            optimizer: optimizer state by name.
            state: JSON values that a resumed run needs.
            write_extras: rank 0 calls it with the folder, for configs and the tokenizer.

        Raises:
            RuntimeError: if an earlier background save failed.
        """
        self.wait()
        job = (step, weights, optimizer, state, write_extras)
        if not self._asynchronous:
            self._write(*job)
            return
        staged = (step, _copy(weights), _copy(optimizer), state, write_extras)
        self._thread = threading.Thread(target=self._write_guarded, args=staged, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            RuntimeError: if the background save failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise RuntimeError(f"saving a checkpoint failed: {failure}") from failure

    def _write_guarded(self, *job: Any) -> None:
        try:
            self._write(*job)
        except BaseException as failure:  # DCP raises BaseExceptions; the next wait() reports it
            self._failure = failure

    def _write(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        write_extras: Callable[[Path], None],
    ) -> None:
        final = step_folder(self.checkpoints, step)
        partial = final.with_name(final.name + ".tmp")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier(self._group)
        self._write_shards(partial / MODEL, weights)
        self._write_shards(partial / OPTIMIZER, optimizer)
        dist.barrier(self._group)
        if first:
            write_extras(partial)
            (partial / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
            write_manifest(partial, {**weights, **optimizer})
            _publish(partial, final)
            _forget(self.checkpoints, self.keep_last)
        dist.barrier(self._group)

    def _write_shards(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer, process_group=self._group)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy shards to host memory, so that training may go on while they are written."""
    return {name: tensor.detach().clone().cpu() for name, tensor in tensors.items()}


def _publish(partial: Path, final: Path) -> None:
    """Give the folder its name and point `latest` to it, each in a step no crash can split."""
    if final.exists():
        # Only a checkpoint of the same step, from before a resume to an earlier one.
        shutil.rmtree(final)
    partial.rename(final)
    pointer = final.parent / f"{LATEST}.tmp"
    pointer.write_text(final.name + "\n")
    os.replace(pointer, final.parent / LATEST)
    logger.info("saved %s", final)


def _forget(checkpoints: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints; never the one `latest` names."""
    named = latest(checkpoints)
    complete = sorted(p for p in checkpoints.glob("step_*") if p.suffix != ".tmp")
    for folder in complete[:-keep_last]:
        if folder != named:
            shutil.rmtree(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint, after checking that its files are complete.

    Raises:
        RuntimeError: naming what is missing.
    """
    read_manifest(folder)
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def read_tensors(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Read the named tensors of one part into place, each rank only what its shards need.

    Args:
        folder: a checkpoint, written by any number of ranks.
        part: MODEL or OPTIMIZER.
        tensors: plain tensors or shards, overwritten.

    Raises:
        RuntimeError: if a file is missing or damaged.
        ValueError: if a tensor is missing or has another shape.
    """
    check_tensors(folder, read_manifest(folder)["tensors"], tensors)
    alone = not dist.is_initialized()
    reader = HuggingFaceStorageReader(str(folder / part))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # we know
        load(dict(tensors), storage_reader=reader, no_dist=alone)


def read_model(folder: Path, model: Llama) -> None:
    """Read a checkpoint's weights shard by shard straight into a model, sharded or not.

    Raises:
        RuntimeError: if a file is missing or damaged.
        ValueError: if a tensor is missing or has another shape.
    """
    read_tensors(folder, MODEL, {name: p.detach() for name, p in model.named_parameters()})
