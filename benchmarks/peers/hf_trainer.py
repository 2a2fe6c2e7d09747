"""Hugging Face `Trainer`: its own `train()`, which a callback holds up between orders."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

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


class Sequences(IterableDataset):  # type: ignore[type-arg]
    """The rows of the batches, one after another and again."""

    def __init__(self, case: Case) -> None:
        self._batches = batches(case)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            for batch in self._batches:
                yield from ({"input_ids": row, "labels": row} for row in batch)


class LossKeeper(Trainer):
    """A Trainer that remembers the last loss, without the cost of logging it."""

    loss: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, a scalar, of the step that Trainer made."""
        self.loss = super().training_step(*args, **kwargs)
        return self.loss


class Waiter(TrainerCallback):
    """Reports every step, and makes the training stop when it is told to."""

    def __init__(self, turns: Turns, trainer: LossKeeper) -> None:
        self._turns, self._trainer = turns, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the next order."""
        if not self._turns.step_done(float(self._trainer.loss)):
            control.should_training_stop = True


def train(case: Case, turns: Turns) -> None:
    """Train as `Trainer` with the fastest settings of its arguments does."""
    dtype = torch.bfloat16 if case.precision == "pure" else torch.float32
    model = LlamaForCausalLM.from_pretrained(case.weights, dtype=dtype)
    arguments = TrainingArguments(
        output_dir=case.scratch,
        max_steps=LAST_STEP,
        per_device_train_batch_size=case.rows,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch_fused",
        bf16=case.precision == "mixed",
        torch_compile=case.compile,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = LossKeeper(model=model, args=arguments, train_dataset=Sequences(case))
    trainer.add_callback(Waiter(turns, trainer))
    if turns.ready(model.parameters(), str(dtype).removeprefix("torch.")):
        trainer.train()


if __name__ == "__main__":
    serve(train)
