"""facebookresearch/LayerSkip in its own environment, as jobs that take turns with ours."""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoders import Decoded, Job, Prompts
from configs.command import ROOT

SCRIPT = ROOT / "benchmarks" / "peers" / "layerskip.py"


class LayerSkip:
    """The process; the model is loaded once."""

    def __init__(self, python: str, checkout: str, model: Path) -> None:
        threads = str(torch.get_num_threads())
        self._process = subprocess.Popen(
            [python, str(SCRIPT), str(Path(checkout).resolve()), str(model), threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def job(
        self, prompts: Prompts, new_tokens: int, *, exit_layer: int = -1, drafts: int = 0
    ) -> Job:
        """Return its autoregressive decoding, or with an exit its self-speculation."""
        request = {
            "prompts": [list(prompt) for prompt in prompts],
            "new_tokens": new_tokens,
            "exit_layer": exit_layer,
            "drafts": drafts,
        }

        def job() -> Decoded:
            assert self._process.stdin is not None, "opened as a pipe"
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
            drafted = answer["tokens"] if drafts else 0
            accepted = round(drafted * answer["acceptance"])
            return Decoded(tokens=answer["tokens"], drafted=drafted, accepted=accepted)

        return job

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                "layerskip_python ended: see its error above; it needs torch, transformers and "
                "what the checkout's requirements.txt lists"
            )
        found: dict[str, Any] = json.loads(line)
        return found
