"""litgpt's pretraining loop: its own `fit`, which the data holds up between orders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric  # type: ignore[import-not-found]
from lightning.fabric.loggers.logger import Logger  # type: ignore[import-not-found]
from litgpt import GPT, Config  # type: ignore[import-not-found]
from litgpt.args import EvalArgs, TrainArgs  # type: ignore[import-not-found]
from litgpt.pretrain import fit  # type: ignore[import-not-found]
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama  # type: ignore[import-not-found]
from litgpt.utils import instantiate_torch_optimizer  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.case import (
    BETAS,
    CLIP_NORM,
    EPS,
    IGNORED,
    LAST_STEP,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Case,
    batches,
)
from benchmarks.peers.turns import Turns, serve

PRECISIONS = {"float32": "32-true", "mixed": "bf16-mixed", "pure": "bf16-true"}


class LastLoss(Logger):  # type: ignore[misc]
    """Keeps the loss that `fit` logs."""

    loss = 0.0
    name, version = "last_loss", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the loss."""
        self.loss = metrics.get("loss", self.loss)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""


class Samples:
    """Rows of S + 1 tokens, of which the last is no label; asks for the next order between them."""

    def __init__(self, case: Case, turns: Turns, logger: LastLoss, state: dict[str, Any]) -> None:
        end = torch.full((case.rows, 1), IGNORED)
        self._batches = [torch.cat([ids, end], dim=1) for ids in batches(case)]  # (B, S + 1)
        self._turns, self._logger, self._state = turns, logger, state

    def __iter__(self) -> Iterator[Tensor]:
        weights = self._state["model"].parameters()
        go_on, step = self._turns.ready(weights, self._state["moments"]), 0
        while True:
            if not go_on:
                self._state["iter_num"] = LAST_STEP  # what makes `fit` stop
            yield self._batches[step % len(self._batches)]
            step, go_on = step + 1, self._turns.step_done(self._logger.loss)


def to_litgpt(case: Case) -> Config:
    """Return litgpt's words for the shape."""
    model = case.model
    return Config(
        name="plain",
        block_size=case.seq_len,
        vocab_size=model["vocab_size"],
        padded_vocab_size=model["vocab_size"],
        n_layer=model["num_hidden_layers"],
        n_head=model["num_attention_heads"],
        n_query_groups=model["num_key_value_heads"],
        n_embd=model["hidden_size"],
        intermediate_size=model["intermediate_size"],
        rope_base=model["rope_theta"],
        norm_eps=model["rms_norm_eps"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )


def train(case: Case, turns: Turns) -> None:
    """Build what litgpt's `pretrain.main` builds and hand it to its `fit`."""
    logger = LastLoss()
    fabric = Fabric(
        accelerator="cpu", devices=1, precision=PRECISIONS[case.precision], loggers=[logger]
    )
    with fabric.init_module():
        model = GPT(to_litgpt(case))
    weights: dict[str, Tensor] = {}
    copy_weights_hf_llama(
        model.config, {}, weights, load_file(Path(case.weights) / "model.safetensors")
    )
    model.load_state_dict(weights)
    model.max_seq_length = case.seq_len
    model = fabric.setup(torch.compile(model) if case.compile else model)
    # Its own main() asks for the fused optimizer on CUDA only; here it gets it on the CPU as well.
    settings = {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    adamw = {"class_path": "torch.optim.AdamW", "init_args": settings}
    optimizer = instantiate_torch_optimizer(adamw, model.parameters(), fused=True)
    state = {
        "model": model,
        "optimizer": fabric.setup_optimizers(optimizer),
        "moments": "bfloat16" if case.precision == "pure" else "float32",
        "iter_num": 0,
        "step_count": 0,
    }
    fit(
        fabric=fabric,
        devices=1,
        state=state,
        train_dataloader=Samples(case, turns, logger, state),
        val_dataloader=[torch.cat([batches(case)[0], batches(case)[0][:, :1]], dim=1)],
        out_dir=Path(case.scratch),
        tokenizer_dir=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=case.rows,
            micro_batch_size=case.rows,
            lr_warmup_steps=None,
            max_tokens=LAST_STEP * case.rows * case.seq_len,
            max_norm=CLIP_NORM,
            min_lr=LEARNING_RATE,
        ),
        eval=EvalArgs(interval=LAST_STEP, final_validation=False),
    )


if __name__ == "__main__":
    serve(train)
