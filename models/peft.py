"""Adapters as a folder that the package `peft` loads; `models.lora` trains them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.lora import LoraConfig

PREFIX = "base_model.model."
"""What `peft` puts before upstream's names."""


def save_adapters(
    adapters: Mapping[str, Tensor],
    config: LoraConfig,
    folder: Path,
    *,
    base: str,
    dtype: torch.dtype,
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` puts on the base model.

    All or nothing: the files are written to `FOLDER.tmp`, which is renamed at the end.

    Args:
        adapters: A (r, in) and B (out, r) of every adapted layer by name.
        config: of them.
        folder: must not exist, or be empty.
        base: folder or hub id of the model that they were trained beside.
        dtype: to store in.

    Raises:
        ValueError: if the folder is in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and was left as it is: give a new folder")
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    partial.mkdir(parents=True)
    try:
        stored = {
            f"{PREFIX}{name}": t.to("cpu", dtype).contiguous() for name, t in adapters.items()
        }
        save_file(stored, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        described = json.dumps(describe_adapters(config, base), indent=2) + "\n"
        (partial / "adapter_config.json").write_text(described)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def describe_adapters(config: LoraConfig, base: str) -> dict[str, object]:
    """Return adapter_config.json of adapters that were trained beside a base model."""
    values = asdict(config)
    alpha = values["alpha"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": values["rank"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": values["dropout"],
        "target_modules": sorted(values["targets"]),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
