"""What the cases damage: a short run, made once, and a model's folder exported from it."""

from pathlib import Path

import pytest

from inference.__main__ import main as inference
from tests.e2e.runs import write_config
from tests.fuzz.command import judge, run
from trainer.__main__ import main as train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, text, data, run (two checkpoints, of steps 1 and 2), exported."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_config(
        folder,
        steps=2,
        model={
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        batch={"global_size": 2, "micro_size": 2},
        schedule={"kind": "constant"},
        exit_loss=None,
        validate={"every": 1000, "sequences": 1},
        checkpoint={"every": 1, "keep_last": 2},
        spikes={"policy": "skip"},
    )
    assert judge(run(train, [str(path), "parallel.device=cpu"]))
    assert judge(run(inference, ["export", str(folder / "run"), str(folder / "exported")]))
    return folder
