"""Sharded checkpoints: safetensors shards and JSON, readable by any number of ranks.

Every rank writes its shards in the safetensors layout of torch's distributed checkpoint (DCP), so
nothing in a checkpoint is a pickle. A checkpoint is written to `step_N.tmp`, renamed, and only then
named in `latest`; an old one is never touched before the new one stands.
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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from models.llama import Llama
from models.ranges import named
from parallel.engine import Engine
from parallel.manifest import check_tensors, read_manifest, write_manifest
from parallel.shard_file import write_shards
from parallel.staging import Staging
from parallel.together import together

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of one checkpoint: by part, MODEL and OPTIMIZER, and by name."""

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


def find_checkpoint(source: Path) -> Path | None:
    """Return the checkpoint that a run's folder, its `checkpoints`, or one of those stands for.

    None means that the source is no part of a training run.

    Raises:
        RuntimeError: if the run has saved nothing yet.
    """
    if (source / STATE).is_file() and (source / MODEL).is_dir():
        return source
    for folder in (source / CHECKPOINTS, source):
        if folder.name == CHECKPOINTS and folder.is_dir():
            newest = latest(folder)
            if newest is None:
                raise RuntimeError(
                    f"{folder} holds no complete checkpoint yet: let the run save one"
                )
            return newest
    return None


class Checkpointer:
    """Writes checkpoints of an engine into one folder, at most one at a time.

    An asynchronous save holds training up nowhere but before its next update, and only if the
    state is not copied to host memory by then: forward and backward leave the state alone.
    """

    def __init__(
        self, checkpoints: Path, engine: Engine, *, keep_last: int, asynchronous: bool
    ) -> None:
        self.checkpoints = checkpoints
        self.keep_last = keep_last
        self._engine = engine
        # A group of its own: collectives of a background save must not mix with the step's.
        self._group = dist.new_group(backend="gloo")
        device = next(engine.model.parameters()).device
        self._staging = Staging(device) if asynchronous else None
        self._staged = threading.Event()
        self._staged.set()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        if asynchronous:
            engine.before_update(self._wait_for_copy)

    @property
    def failed(self) -> bool:
        """Whether a background save has failed, which the next `save` or `wait` will raise."""
        return self._failure is not None

    def save(
        self, step: int, state: Mapping[str, Any], write_extras: Callable[[Path], None]
    ) -> None:
        """Save shards of this rank; every rank calls it with the same step.

        Args:
            step: finished optimiser steps.
            state: JSON values that a resumed run needs.
            write_extras: rank 0 calls it with the folder, for configs and the tokenizer.

        Raises:
            RuntimeError: on all ranks, if some rank could not save, now or in the background since
                the last call.
        """
        self.wait()
        parts = {MODEL: self._engine.weights(), OPTIMIZER: self._engine.optimizer_state()}
        if self._staging is None:
            self._write(step, state, write_extras, parts)
            return
        self._staging.follow()
        self._staged.clear()
        job = (step, state, write_extras, parts)
        self._thread = threading.Thread(target=self._write_behind, args=job, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            RuntimeError: on all ranks, if the background save failed on any.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _wait_for_copy(self) -> None:
        with named("checkpoint copy"):
            self._staged.wait()

    def _write_behind(self, *job: Any) -> None:
        try:
            self._write(*job)
        except BaseException as failure:  # whatever it is, the next wait() raises it
            self._failure = failure
        finally:
            self._staged.set()

    def _write(
        self,
        step: int,
        state: Mapping[str, Any],
        write_extras: Callable[[Path], None],
        parts: Parts,
    ) -> None:
        """Take the three steps of a save, none before all ranks have taken the one before."""
        final = step_folder(self.checkpoints, step)
        partial = final.with_name(final.name + ".tmp")

        def begin() -> Parts:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            return self._stage(parts)

        def write() -> None:
            for part, tensors in staged.items():
                write_shards(partial / part, tensors)

        def finish() -> None:
            if dist.get_rank() == 0:
                write_extras(partial)
                (partial / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
                write_manifest(partial, {**staged[MODEL], **staged[OPTIMIZER]})
                _publish(partial, final)
                _forget(self.checkpoints, self.keep_last)

        what = f"saving the checkpoint of step {step}"
        staged = together(begin, what, group=self._group)
        together(write, what, group=self._group)
        together(finish, what, group=self._group)

    def _stage(self, parts: Parts) -> Parts:
        """Return host copies of all tensors if training is to go on, which it then may."""
        if self._staging is None:
            return parts
        copies = {part: self._staging.copy(tensors) for part, tensors in parts.items()}
        self._staged.set()
        return copies


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
    newest = latest(checkpoints)
    complete = sorted(p for p in checkpoints.glob("step_*") if p.suffix != ".tmp")
    for folder in complete[:-keep_last]:
        if folder != newest:
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
