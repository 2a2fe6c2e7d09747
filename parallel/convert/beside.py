"""What stands beside the tensors: the model's config, its tokenizer, the run's config and position.

All but DeepSpeed's own checkpoints have some of it. It goes along into every format, so that a
checkpoint that went there and back has lost nothing.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.config import LlamaConfig
from models.hf import read_config
from models.hf_config import config_to_hf
from models.json_file import read_object
from parallel.checkpoint import MODEL, STATE, TOKENIZER

RUN_CONFIG = "config.yaml"
"""The trainer's config in a checkpoint."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
SPECIAL = ("bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What there is; None or empty where there is not."""

    config: LlamaConfig | None = None
    special: Mapping[str, Any] = field(default_factory=dict)
    """Ids of the tokens that begin and end a text, by their keys in `config.json`."""
    tokenizer: tuple[Path, ...] = ()
    """Files."""
    run_config: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's position."""


def find_beside(*folders: Path) -> Beside:
    """Return what folders hold, each thing from the first folder that has it.

    Raises:
        ValueError: if there is a config that is no Llama's.
    """
    configs = [f for folder in folders for f in (folder / MODEL, folder) if _has_config(f)]
    tokenizers = [t for folder in folders for t in (folder / TOKENIZER, folder)]
    files = next((found for t in tokenizers if (found := _tokenizer_files(t))), ())
    runs = [folder / RUN_CONFIG for folder in folders if (folder / RUN_CONFIG).is_file()]
    states = [folder / STATE for folder in folders if (folder / STATE).is_file()]
    described = read_object(configs[0] / "config.json") if configs else {}
    special = {key: described[key] for key in SPECIAL if described.get(key) is not None}
    return Beside(
        config=read_config(configs[0]) if configs else None,
        special={**_special_ids(files), **special},
        tokenizer=files,
        run_config=runs[0] if runs else None,
        state=read_object(states[0]) if states else {},
    )


def complete(beside: Beside, *, config: str | None, tokenizer: str | None) -> Beside:
    """Add what the user says is elsewhere.

    Args:
        beside: of the source.
        config: folder with a config.json.
        tokenizer: folder with a tokenizer's files.

    Raises:
        ValueError: if something is not there, or the source has its own.
    """
    if config is not None:
        if beside.config is not None:
            raise ValueError(f"config={config}: the source has its own config.json: leave it out")
        if not _has_config(Path(config)):
            raise ValueError(f"config={config}: give a folder that has a config.json in it")
        found = find_beside(Path(config))
        beside = replace(beside, config=found.config, special={**found.special, **beside.special})
    if tokenizer is not None:
        files = _tokenizer_files(Path(tokenizer))
        if beside.tokenizer:
            raise ValueError(f"tokenizer={tokenizer}: the source has its own: leave it out")
        if not files:
            raise ValueError(
                f"tokenizer={tokenizer}: give a folder that has a tokenizer's files in it, such as "
                "tokenizer.json or tokenizer.model"
            )
        special = {**_special_ids(files), **beside.special}
        beside = replace(beside, tokenizer=files, special=special)
    return beside


def write_beside(beside: Beside, checkpoint: Path, step: int) -> None:
    """Write all there is into a checkpoint, where `find_beside` looks for it."""
    if beside.config is not None:
        (checkpoint / MODEL).mkdir(exist_ok=True)
        described = config_to_hf(beside.config, dtype="float32") | dict(beside.special)
        (checkpoint / MODEL / "config.json").write_text(json.dumps(described, indent=1))
    if beside.tokenizer:
        copy_tokenizer(beside, checkpoint / TOKENIZER)
    if beside.run_config is not None:
        shutil.copy(beside.run_config, checkpoint / RUN_CONFIG)
    state = {"step": step, "tokens_seen": 0} | dict(beside.state) | {"step": step}
    (checkpoint / STATE).write_text(json.dumps(state, indent=1))


def copy_tokenizer(beside: Beside, folder: Path) -> None:
    """Copy the tokenizer's files into a folder, which is made if it is missing."""
    folder.mkdir(exist_ok=True)
    for file in beside.tokenizer:
        shutil.copy(file, folder)


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    found = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return found if {"tokenizer.json", "tokenizer.model"} & {file.name for file in found} else ()


def _special_ids(files: tuple[Path, ...]) -> dict[str, int]:
    """Look the special tokens of a tokenizer's config up among the tokens it adds."""
    by_name = {file.name: file for file in files}
    if not {"tokenizer.json", "tokenizer_config.json"} <= by_name.keys():
        return {}
    ids = _added_ids(by_name["tokenizer.json"])
    settings = read_object(by_name["tokenizer_config.json"])
    found = {}
    for key in SPECIAL:
        token = settings.get(key.removesuffix("_id"))
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            found[key] = ids[token]
    return found


def _added_ids(file: Path) -> dict[str, int]:
    added = read_object(file).get("added_tokens")
    try:
        return {str(token["content"]): int(token["id"]) for token in added or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: added_tokens is damaged ({error!r}): copy it again") from None
