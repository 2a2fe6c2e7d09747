"""The root of a training configuration: its sections, and the checks across them."""

from dataclasses import dataclass, field
from typing import Literal

from data_pipelines.config import DataConfig, num_lanes
from models.config import LlamaConfig
from models.lora import LoraConfig
from parallel.config import ParallelConfig
from trainer.evaluate_config import EvaluateConfig
from trainer.exit_weights import check_exit_loss
from trainer.optim import OptimConfig
from trainer.profile import STEPS as PROFILE_STEPS
from trainer.recipe_config import ExitLossConfig, LayerDropoutConfig, ScheduleConfig
from trainer.schedule import check_schedule
from trainer.spikes import SpikesConfig
from trainer.trained import FreezeConfig

MOST_STEPS = 10**9
"""A run of a step a millisecond would take eleven days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """How many sequences an optimiser step sees, and in what portions."""

    global_size: int
    """Sequences per optimiser step, over all ranks. The same number on 1 or 1,000 ranks trains the
    same model."""
    micro_size: int
    """Sequences of one forward pass on one rank; global_size / (micro_size * ranks) of them are
    accumulated."""

    def __post_init__(self) -> None:
        if self.micro_size < 1:
            raise ValueError(f"batch.micro_size must be at least 1, got {self.micro_size}")
        if self.global_size < 1 or self.global_size % self.micro_size:
            raise ValueError(
                f"batch.global_size {self.global_size} must be a multiple of batch.micro_size "
                f"{self.micro_size}"
            )

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one optimiser step, over all ranks."""
        return self.global_size // self.micro_size

    def check_ranks(self, size: int) -> None:
        """Check that the microbatches divide among `size` ranks.

        Raises:
            ValueError: if they do not.
        """
        if self.num_microbatches % size:
            raise ValueError(
                f"batch.global_size {self.global_size} in microbatches of batch.micro_size "
                f"{self.micro_size} makes {self.num_microbatches}, which {size} ranks cannot "
                f"share equally: make global_size a multiple of {self.micro_size * size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateConfig:
    """Perplexity and agreement of every exit on held-out documents."""

    every: int = 100
    """Optimiser steps between validations; one more comes at the end."""
    sequences: int = 256
    """At most so many sequences of the validation split, always the first ones."""

    def __post_init__(self) -> None:
        for name in ("every", "sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"validate.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    every: int = 500
    """Optimiser steps between checkpoints; one more comes at the end and at SIGTERM or SIGUSR1."""
    keep_last: int = 2
    """How many checkpoints to keep."""
    asynchronous: bool = False
    """Copy to host memory and write in the background while training goes on."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"checkpoint.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Train a Llama with the LayerSkip recipe (arXiv 2404.16710)."""

    run_folder: str
    """Where everything of this run goes; an interrupted run in it is resumed."""
    steps: int
    """Optimiser steps T of the whole run; schedules and curricula are functions of step / T."""
    data: DataConfig
    """What to train on."""
    batch: BatchConfig
    """Sizes of batches."""
    optim: OptimConfig
    """AdamW."""
    schedule: ScheduleConfig
    """Learning rate over time."""
    model: LlamaConfig | None = None
    """Shape of a fresh model. With init_from it may be left out; what is given has to be true of
    that model, and spares --check a look at it."""
    init_from: str | None = None
    """Folder or hub id of a Hugging Face Llama whose weights to start from."""
    lora: LoraConfig | None = None
    """Train adapters beside the weights of init_from; absent: the weights themselves."""
    freeze: FreezeConfig | None = None
    """What to leave as it is in init_from; absent: nothing."""
    layer_dropout: LayerDropoutConfig | None = None
    """Stochastic depth; absent: every layer always runs."""
    exit_loss: ExitLossConfig | None = None
    """Early-exit loss; absent: only the last layer has a loss."""
    spikes: SpikesConfig | None = None
    """What to do about loss spikes; absent: numbers that are not finite stop the run."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Devices, precision and sharding."""
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    """Held-out evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    evaluate: EvaluateConfig | None = None
    """Samples, measured speed and tasks of checkpoints as they are saved; absent: none."""
    resume: Literal["auto", "strict", "never"] = "auto"
    """auto goes on from the newest checkpoint in run_folder that is good, and puts damaged ones
    aside; strict stops if the newest is damaged; never refuses to start if there is one."""
    seed: int = 0
    """Fixes weights, data order, dropped layers: everything random."""
    loss_chunk_tokens: int | None = None
    """Positions whose logits are in memory at once; default: as many as fit 1 GiB in float32."""
    log_every: int = 1
    """Optimiser steps between lines of metrics."""
    profile: bool = False
    """Trace three steps, from the fourth on, on every rank: run_folder/profile (docs/profiling.md).
    """

    def __post_init__(self) -> None:
        for name in ("steps", "loss_chunk_tokens", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS}, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.profile and self.steps < PROFILE_STEPS:
            raise ValueError(
                f"profile=true traces steps up to the {PROFILE_STEPS}th, but steps is "
                f"{self.steps}: raise it"
            )
        check_schedule(self.schedule, self.steps)
        if self.evaluate is not None:
            self.evaluate.check_schedule(self.checkpoint.every)
        num_lanes(self.data, self.batch.num_microbatches)
        if self.data.valid_fraction == 0:
            raise ValueError(
                "data.valid_fraction is 0, but every exit is measured on held-out documents: set "
                "it above 0, such as 0.01"
            )
        if self.model is None and self.init_from is None:
            raise ValueError(
                "give model (the shape of a fresh model) or init_from (a model to go on from)"
            )
        self._check_trained()
        if self.model is not None:
            self.check_model(self.model)

    def _check_trained(self) -> None:
        if self.lora is not None and self.freeze is not None:
            raise ValueError(
                "lora and freeze are both given, but lora leaves all weights as they are: remove "
                "freeze"
            )
        name = "lora" if self.lora is not None else "freeze"
        if getattr(self, name) is not None and self.init_from is None:
            raise ValueError(
                f"{name} needs init_from, the model whose weights stay as they are: give it in "
                "place of model"
            )

    def check_model(self, model: LlamaConfig) -> None:
        """Check the sections against the model that will be trained.

        Raises:
            ValueError: naming the key.
        """
        if self.data.seq_len > model.max_position_embeddings:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is longer than model.max_position_embeddings "
                f"{model.max_position_embeddings}: lower the one or raise the other"
            )
        check_exit_loss(self.exit_loss, model.num_hidden_layers)
        if self.evaluate is not None:
            self.evaluate.check_exits(model.num_hidden_layers)

    def deepspeed_keys(self, ranks: int) -> dict[str, float]:
        """Return the keys of DeepSpeed that this config decides outside of `parallel`."""
        return {
            "train_batch_size": self.batch.global_size,
            "train_micro_batch_size_per_gpu": self.batch.micro_size,
            "gradient_accumulation_steps": self.batch.num_microbatches // ranks,
            "gradient_clipping": self.optim.clip_norm or 0.0,
        }
