"""The benchmark's end of the line to a side that trains in a process of its own."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.case import Case
from configs.command import ROOT


class Worker:
    """A process that waits for orders; see `benchmarks.peers.turns`."""

    def __init__(self, python: Path, module: str, *, log: Path, compile_cache: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            # Threads that wait sleep instead of spinning: their seconds are work, and a machine
            # that others use does not slow a step down many times over.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TORCHINDUCTOR_CACHE_DIR": str(compile_cache),
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def build(self, case: Case) -> dict[str, Any]:
        """Have a case built; return `parameters` and the dtypes of `weights` and `moments`."""
        return self._ask(asdict(case))

    def steps(self, count: int, *, profile: bool = False) -> dict[str, Any]:
        """Have steps run; return `wall` and `cpu` seconds, `losses` and `profile`."""
        return self._ask({"steps": count, "profile": profile})

    def finish(self) -> None:
        """End the case; another can be built."""
        self._tell({"steps": 0})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._tell(order)
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise self._stopped()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None, "opened as a pipe"
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._stopped() from None

    def _stopped(self) -> RuntimeError:
        said = last_line(self._log.read_text(errors="replace"))
        return RuntimeError(f"{said} (see {self._log.relative_to(ROOT)})")


def last_line(text: str) -> str:
    """Return what a process said last."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "it stopped without a word")
