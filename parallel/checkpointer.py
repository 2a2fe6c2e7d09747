"""Saves of a run, in the foreground or the background: all of a checkpoint, or nothing.

A checkpoint is written to `step_N.tmp` and put on the disk with its checksums; then it is renamed,
and only then named in `latest`. An old one is never touched before the new one stands.
"""

import errno
import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from models.ranges import named
from parallel.checkpoint import MODEL, OPTIMIZER, STATE, step_folder
from parallel.checksum import Written
from parallel.engine import Engine
from parallel.manifest import write_manifest
from parallel.publish import PARTIAL, Spared, check_room, forget, publish, spare_none
from parallel.shard_file import shard_bytes, write_shards
from parallel.staging import Staging
from parallel.together import RankFailedError, all_ranks, together

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of one checkpoint: by part, MODEL and OPTIMIZER, and by name."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One save."""

    step: int
    state: Mapping[str, Any]
    write_extras: Callable[[Path], None]
    parts: Parts
    may_be_left_out: bool


class Checkpointer:
    """Writes checkpoints of an engine into one folder, at most one at a time.

    An asynchronous save holds training up nowhere but before its next update, and only if the
    state is not copied to host memory by then: forward and backward leave the state alone.
    """

    def __init__(
        self,
        checkpoints: Path,
        engine: Engine,
        *,
        keep_last: int,
        asynchronous: bool,
        spared: Spared = spare_none,
    ) -> None:
        """Make the group and, for background saves, the memory that they write from.

        Args:
            checkpoints: the folder.
            engine: whose weights and moments are saved.
            keep_last: how many checkpoints to keep.
            asynchronous: whether to write in the background.
            spared: asked on rank 0 which others are to stay for now.
        """
        self.checkpoints = checkpoints
        self.keep_last = keep_last
        self._spared = spared
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
        self,
        step: int,
        state: Mapping[str, Any],
        write_extras: Callable[[Path], None],
        *,
        may_be_left_out: bool = False,
    ) -> None:
        """Save shards of this rank; every rank calls it with the same step.

        Args:
            step: finished optimiser steps.
            state: JSON values that a resumed run needs.
            write_extras: rank 0 calls it with the folder, for configs and the tokenizer.
            may_be_left_out: if there is no room for it, warn and do without.

        Raises:
            RuntimeError: on all ranks, if some rank could not save, now or in the background since
                the last call.
        """
        self.wait()
        job = _Job(
            step=step,
            state=state,
            write_extras=write_extras,
            parts={MODEL: self._engine.weights(), OPTIMIZER: self._engine.optimizer_state()},
            may_be_left_out=may_be_left_out,
        )
        if self._staging is None:
            self._save(job)
            return
        self._staging.follow()
        self._staged.clear()
        self._thread = threading.Thread(target=self._save_behind, args=[job], daemon=True)
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

    def _save_behind(self, job: _Job) -> None:
        try:
            self._save(job)
        except BaseException as failure:  # whatever it is, the next wait() raises it
            self._failure = failure
        finally:
            self._staged.set()

    def _save(self, job: _Job) -> None:
        """Write a checkpoint or leave nothing of it; a lack of room need not be the run's end."""
        partial = step_folder(self.checkpoints, job.step)
        partial = partial.with_name(partial.name + PARTIAL)
        try:
            self._write(job, partial)
        except RankFailedError as failure:
            if dist.get_rank() == 0:  # no other rank is writing any more
                shutil.rmtree(partial, ignore_errors=True)
            if not (job.may_be_left_out and failure.code in NO_ROOM):
                raise
            if dist.get_rank() == 0:
                logger.warning(
                    "%s; the run goes on without it, and what it does from here on is not safe "
                    "before the next checkpoint",
                    failure,
                )

    def _write(self, job: _Job, partial: Path) -> None:
        """Take the steps of a save, none before all ranks have taken the one before."""

        def begin() -> Parts:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                check_room(partial, sum(needed))
            return self._stage(job.parts)

        def write() -> dict[str, Written]:
            return {
                f"{part}/{name}": written
                for part, tensors in staged.items()
                for name, written in write_shards(partial / part, tensors).items()
            }

        def finish() -> None:
            if dist.get_rank() == 0:
                job.write_extras(partial)
                state = {"step": job.step, **job.state}
                (partial / STATE).write_text(json.dumps(state, indent=1))
                files = {name: file for each in everyone for name, file in each.items()}
                write_manifest(partial, {**staged[MODEL], **staged[OPTIMIZER]}, files)
                publish(partial, partial.with_suffix(""))
                forget(self.checkpoints, self.keep_last, self._spared)

        what = f"saving the checkpoint of step {job.step}"
        needed = all_ranks(sum(map(shard_bytes, job.parts.values())), group=self._group)
        staged = together(begin, what, group=self._group)
        everyone = all_ranks(together(write, what, group=self._group), group=self._group)
        together(finish, what, group=self._group)

    def _stage(self, parts: Parts) -> Parts:
        """Return host copies of all tensors if training is to go on, which it then may."""
        if self._staging is None:
            return parts
        copies = {part: self._staging.copy(tensors) for part, tensors in parts.items()}
        self._staged.set()
        return copies
