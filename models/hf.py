"""Hugging Face model folders and hub ids, read into a Llama and written from one.

The only file of `models` that imports transformers, and only for GGUF.
"""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models.config import LlamaConfig
from models.hf_config import config_from_hf, config_to_hf
from models.init import Assign, copy_whole
from models.json_file import read_object
from models.llama import Llama
from models.lora import is_adapter
from models.weight_check import check_shapes, checked
from models.weight_files import INDEX, SINGLE, StoredTensor, stored_tensors, write_tensors

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

COMPUTED = ".rotary_emb.inv_freq"
"""Ends the name of a buffer in old Llama 1 and 2 checkpoints that holds no weights."""

GGUF_NAMES = re.compile(
    r"(token_embd|output|output_norm|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))"
    r"\.weight"
)
"""What a GGUF Llama may hold; transformers silently drops the rest: biases, rope_freqs, experts."""


def read_config(source: str | Path) -> LlamaConfig:
    """Return the config of a folder (safetensors or GGUF) or of a model on the hub.

    Raises:
        ValueError: there is no such folder, or the model in it cannot be run.
        RuntimeError: the hub cannot be reached or does not have it.
    """
    folder = _folder(source, ["config.json"])
    gguf = _gguf(folder)
    if gguf is not None:
        return config_from_hf(_gguf_config(gguf), origin=str(gguf))
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: give the folder of a model")
    return config_from_hf(read_object(file), origin=str(file))


def iterate_weights(source: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) in Hugging Face names and shapes, one tensor in memory at a time.

    With tied embeddings a stored head is left out. A GGUF file is dequantised whole, to float32.

    Raises:
        ValueError, RuntimeError: as `read_config`; or the files are incomplete.
    """
    for name, stored in stored_weights(source).items():
        yield name, stored.read()


@torch.no_grad()
def load_weights(model: Llama, source: str | Path, *, assign: Assign = copy_whole) -> None:
    """Copy weights into a model in place, converted to its dtype and device.

    Names and shapes are compared before anything is copied. Adapters are not among the weights.

    Args:
        model: on any device; its parameters may be DTensors if `assign` can fill them.
        source: a folder or hub id.
        assign: called once for every parameter, with the whole tensor; default: `copy_`.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; one line with its name.
    """
    _fill(model, _fitting(model, source), assign)


def _fitting(model: Llama, source: str | Path) -> dict[str, StoredTensor]:
    """Return the stored tensors of a source after checking that they are the model's."""
    stored = stored_weights(source)
    check_shapes(
        {name: tensor.shape for name, tensor in stored.items()},
        {name: tuple(parameter.shape) for name, parameter in _weights(model).items()},
        origin=str(source),
    )
    return stored


def _weights(model: Llama) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not is_adapter(name)}


def _fill(model: Llama, stored: dict[str, StoredTensor], assign: Assign) -> None:
    parameters = _weights(model)
    for name, tensor in stored.items():
        assign(parameters[name], tensor.read())


@torch.no_grad()
def load_pretrained(
    source: str | Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Llama:
    """Return the Llama of a folder or hub id, never holding its weights twice."""
    with torch.device("meta"):
        model = Llama(read_config(source)).to(dtype)
    stored = _fitting(model, source)  # before memory is taken for what may not be there
    model.to_empty(device=device)
    _fill(model, stored, copy_whole)
    return model


def save_pretrained(
    weights: Iterable[tuple[str, Tensor]],
    config: LlamaConfig,
    folder: str | Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = 5 * 10**9,
    eos_token_id: int | list[int] | None = None,
    bos_token_id: int | None = None,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads.

    All or nothing: the files are written to `FOLDER.tmp`, which is renamed at the end.

    Args:
        weights: every parameter of the model once, under its name.
        config: of the model.
        folder: must not exist, or be empty.
        dtype: to store in.
        max_shard_bytes: larger models are split into shards.
        eos_token_id: token that ends a text.
        bos_token_id: token that begins a text.

    Raises:
        ValueError: the folder is in use, or a tensor is missing, unexpected or of another shape.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and was left as it is: give a new folder")
    special = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    values = config_to_hf(config, dtype=str(dtype).removeprefix("torch.")) | special
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    partial.mkdir(parents=True)
    try:
        fitting = checked(weights, config, origin="the weights to save")
        write_tensors(fitting, partial, dtype=dtype, max_shard_bytes=max_shard_bytes)
        _write_json(partial / "config.json", values)
        _write_json(
            partial / "generation_config.json",
            {key: token for key, token in special.items() if token is not None},
        )
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")


def _folder(source: str | Path, patterns: list[str]) -> Path:
    """Return a local folder: the source itself, or the hub's files, downloaded or cached."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise ValueError(f"{source} is a file: give the folder that holds the model")
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except HFValidationError:
        raise ValueError(f"{source} is neither a folder nor a hub id such as owner/name") from None
    except Exception as error:  # the hub client raises its own, OSErrors and HTTP errors
        reason = " ".join(str(error).split("\n")[0].split())
        raise RuntimeError(
            f"{source} is not a folder here, and cannot be fetched from the hub ({reason}): check "
            "the name, the connection and your access"
        ) from None


def stored_weights(source: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of a source by name, without those that are computed or tied.

    Reads headers only, of safetensors.

    Raises:
        ValueError, RuntimeError: as `iterate_weights`.
    """
    gguf = _gguf(_folder(source, ["config.json"]))
    if gguf is not None:
        return _gguf_tensors(gguf)
    folder = _folder(source, ["config.json", SINGLE, INDEX, "model-*.safetensors"])
    tied = read_config(folder).tie_word_embeddings
    stored = {n: t for n, t in stored_tensors(folder).items() if not n.endswith(COMPUTED)}
    if tied and {HEAD, EMBEDDING} <= stored.keys():
        head = stored.pop(HEAD)
        if not torch.equal(head.read(), stored[EMBEDDING].read()):
            raise ValueError(
                f"{source}: tie_word_embeddings is true but {HEAD} differs from {EMBEDDING}: set "
                "it to false in config.json"
            )
    return stored


def _gguf(folder: Path) -> Path | None:
    """Return a folder's GGUF file; None if it has a config.json, so safetensors."""
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not files:
        return None
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files: leave one, such as {files[0]}")
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeError(f"{files[0]}: install the package gguf to read it")
    return files[0]


def _gguf_config(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = load_gguf_checkpoint(file)["config"]  # type: ignore[no-untyped-call]
    except Exception as error:  # a damaged file may make the reader raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} cannot be read as GGUF ({reason}): download it again") from None
    return config


def _gguf_tensors(file: Path) -> dict[str, StoredTensor]:
    import gguf  # optional, of the extra `real`

    reader = gguf.GGUFReader(file)
    names = [tensor.name for tensor in reader.tensors]
    ignored = [name for name in names if not GGUF_NAMES.fullmatch(name)]
    ignored += [key for key in reader.fields if ".rope.scaling." in key]
    if ignored:
        raise ValueError(f"{file}: cannot read {ignored[0]} from GGUF: use the model's safetensors")
    # Its from_pretrained needs accelerate; the loader below needs any model with the same names.
    num_layers = sum(name.endswith(".attn_q.weight") for name in names)
    with torch.device("meta"):
        named = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=num_layers)
        )
    tensors = load_gguf_checkpoint(  # type: ignore[no-untyped-call]
        file, return_tensors=True, model_to_load=named, torch_dtype=torch.float32
    )["tensors"]
    return {name: StoredTensor(tuple(t.shape), t.detach) for name, t in tensors.items()}
