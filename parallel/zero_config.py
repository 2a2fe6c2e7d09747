"""DeepSpeed's configuration: made from ours, with what a user's own JSON adds to it.

A key of the user's is either decided by our config, and then may only repeat it; or passed on; or
refused. `"auto"` repeats whatever is decided.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallel.config import ParallelConfig

PASSED_ON = {
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.sub_group_size",
    "zero_optimization.offload_optimizer.pin_memory",
    "dump_state",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
}
"""Settings of DeepSpeed that change speed and memory, not numbers."""
INSTEAD = {
    "optimizer": "optim",
    "scheduler": "schedule",
    "tensorboard": "the run's own TensorBoard files",
    "activation_checkpointing": "parallel.recompute",
    "progressive_layer_drop": "layer_dropout",
    "data_efficiency": "data",
    "flops_profiler": "profile",
    "checkpoint": "checkpoint",
    "compile": "parallel.compile",
}
"""Sections that are settings of ours."""
BUCKET = 50_000_000
"""Most elements that are reduced or gathered at once at stages 1 and 2."""


def to_deepspeed(config: ParallelConfig, num_parameters: int) -> dict[str, Any]:
    """Return the dictionary that `deepspeed.initialize` takes.

    Microbatches, clipping and the schedule are the training step's own, so that all engines do the
    same; DeepSpeed is told of single batches.

    Args:
        config: whose `zero` section is set.
        num_parameters: of the model; buckets need not be larger.
    """
    assert config.zero is not None, "chosen by the config"
    bucket = min(BUCKET, num_parameters)
    zero: dict[str, Any] = {
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.zero.stage == 3:
        # A gather ahead of time may be of a layer that the plan leaves out, and a weight that stays
        # is gathered after every step whether it is used or not.
        zero |= {
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
        }
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # its default is 1.0, on top of ours
        "zero_optimization": zero,
    }
    if config.zero.deepspeed_config is not None:
        user = read_user_config(config.zero.deepspeed_config)
        for key, value in _flat(user):
            if key in PASSED_ON:
                _put(settings, key, value)
    for key, value in decided(config).items():
        _put(settings, key, value)
    return settings


def decided(config: ParallelConfig) -> dict[str, Any]:
    """Return the keys of DeepSpeed, joined by dots, that our config decides, and their values."""
    assert config.zero is not None, "chosen by the config"
    values: dict[str, Any] = {
        "zero_optimization.stage": config.zero.stage,
        # A layer that no plan of the step visits has no gradient.
        "zero_optimization.ignore_unused_parameters": True,
        "bf16.enabled": config.precision == "bfloat16",
        "bf16.check_grad_overflow": False,  # the step looks at the norm before it updates
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16.enabled": False,
        "torch_autocast.enabled": False,
        "data_types.grad_accum_dtype": "fp32",
        "communication_data_type": "fp32",
        "managed_gradient_accumulation": True,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
    }
    if config.zero.stage < 3 and not config.zero.offload_optimizer:
        values["zero_optimization.compute_grad_norm"] = False  # it is computed, but by us
    device = "cpu" if config.zero.offload_optimizer else "none"
    values["zero_optimization.offload_optimizer.device"] = device
    values["zero_optimization.offload_param.device"] = "none"
    return values


def check_user_config(config: ParallelConfig, recipe: Mapping[str, Any]) -> None:
    """Check a user's DeepSpeed JSON, if there is one, against our config.

    Args:
        config: whose `zero` section may name a file.
        recipe: keys of DeepSpeed that other sections decide, and their values.

    Raises:
        ValueError: naming the first key that contradicts our config or is not known here.
    """
    if config.zero is None or config.zero.deepspeed_config is None:
        return
    path, ours = config.zero.deepspeed_config, {**decided(config), **recipe}
    for key, value in _flat(read_user_config(path)):
        section = key.split(".")[0]
        if section in INSTEAD:
            raise ValueError(f"{path}: {section} is set by {INSTEAD[section]} here: remove it")
        if key in ours:
            if value not in ("auto", ours[key]):
                raise ValueError(
                    f"{path}: {key} is {json.dumps(value)}, but this run's config says "
                    f"{json.dumps(ours[key])}: make them equal, or remove the key"
                )
        elif key not in PASSED_ON:
            raise ValueError(
                f"{path}: {key} is not among the settings that are passed on to DeepSpeed: remove "
                f"it. Those are {', '.join(sorted(PASSED_ON))}"
            )


def read_user_config(path: str) -> dict[str, Any]:
    """Return the content of a DeepSpeed JSON.

    Raises:
        ValueError: if there is no such file, or no JSON object in it.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"parallel.zero.deepspeed_config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"parallel.zero.deepspeed_config {path}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"parallel.zero.deepspeed_config {path}: no JSON object")
    return content


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield keys joined by dots, and values."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[last] = value
