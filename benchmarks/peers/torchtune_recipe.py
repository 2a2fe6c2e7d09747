"""torchtune's `full_finetune_single_device`: the recipe itself, held up by its metric logger."""

import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchtune  # type: ignore[import-not-found]
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.peers.case import (
    BETAS,
    CLIP_NORM,
    EPS,
    LAST_STEP,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Case,
    batches,
)
from benchmarks.peers.turns import Turns, serve

DTYPES = {"float32": "fp32", "pure": "bf16"}
RECIPE = "recipes/full_finetune_single_device.py"


class Rows(Dataset[Tensor]):
    """The rows of the batches, again and again; the recipe makes it from its configuration."""

    def __init__(self, tokenizer: object, case: dict[str, Any]) -> None:
        self._rows = torch.cat(batches(Case(**case)))  # (8 B, S)

    def __len__(self) -> int:
        return LAST_STEP

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index % len(self._rows)]


def stack(rows: list[Tensor], padding_idx: int, ignore_idx: int) -> dict[str, Tensor]:
    """Return a batch of rows (S,) as tokens and labels (B, S); the recipe shifts the labels."""
    ids = torch.stack(rows)
    return {"tokens": ids, "labels": ids}


class StoppedError(Exception):
    """The benchmark wants no more steps."""


class Waiter:
    """A metric logger that reports every step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def log_dict(self, values: dict[str, Any], step: int) -> None:
        """Wait for the next order.

        Raises:
            StoppedError: if there is none.
        """
        if not self._turns.step_done(float(values["loss"])):
            raise StoppedError


def recipe_config(case: Case) -> DictConfig:
    """Return the recipe's configuration, as a YAML file of torchtune has it."""
    model, here = case.model, "benchmarks.peers.torchtune_recipe"
    return OmegaConf.create(
        {
            "model": {
                "_component_": "torchtune.models.llama3.llama3",
                "vocab_size": model["vocab_size"],
                "num_layers": model["num_hidden_layers"],
                "num_heads": model["num_attention_heads"],
                "num_kv_heads": model["num_key_value_heads"],
                "embed_dim": model["hidden_size"],
                "intermediate_dim": model["intermediate_size"],
                "max_seq_len": case.seq_len,
                "rope_base": model["rope_theta"],
                "norm_eps": model["rms_norm_eps"],
            },
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "checkpoint_dir": case.weights,
                "checkpoint_files": ["model.safetensors"],
                "output_dir": case.scratch,
                "model_type": "LLAMA3",
            },
            "optimizer": {
                "_component_": "torch.optim.AdamW",
                "lr": LEARNING_RATE,
                "betas": list(BETAS),
                "eps": EPS,
                "weight_decay": WEIGHT_DECAY,
                "fused": True,
            },
            "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
            "tokenizer": {"_component_": "types.SimpleNamespace", "pad_id": 0},
            "dataset": {"_component_": f"{here}.Rows", "case": asdict(case)},
            "collate_fn": f"{here}.stack",
            "metric_logger": {
                "_component_": "torchtune.training.metric_logging.StdoutLogger",
            },
            "output_dir": case.scratch,
            "device": "cpu",
            "dtype": DTYPES[case.precision],
            "compile": case.compile,
            "batch_size": case.rows,
            "clip_grad_norm": CLIP_NORM,
            "epochs": 1,
            "max_steps_per_epoch": None,
            "gradient_accumulation_steps": 1,
            "optimizer_in_bwd": False,
            "resume_from_checkpoint": False,
            "enable_activation_checkpointing": False,
            "shuffle": False,
            "seed": 0,
        }
    )


def train(case: Case, turns: Turns) -> None:
    """Set the recipe up and run its `train()`."""
    file = Path(torchtune.__file__).parent.parent / RECIPE
    config = recipe_config(case)
    recipe = runpy.run_path(str(file))["FullFinetuneRecipeSingleDevice"](cfg=config)
    recipe.setup(cfg=config)
    recipe._metric_logger = Waiter(turns)
    if not turns.ready(
        recipe._model.parameters(), "bfloat16" if case.precision == "pure" else "float32"
    ):
        return
    try:
        recipe.train()
    except StoppedError:
        return


if __name__ == "__main__":
    serve(train)
