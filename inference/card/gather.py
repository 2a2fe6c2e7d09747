"""From what is exported, and the run that it is of, to the facts of its card."""

import logging
import re
from pathlib import Path
from typing import Any

import yaml

from configs.document import is_too_deep
from inference.card.facts import Facts, Tuned
from inference.card.read_run import read_run
from inference.card.recipe import shown
from inference.measure.intervals import Interval
from inference.tuned import tuned_for
from models.hf import read_config
from parallel.checkpoint import MODEL, find_checkpoint

logger = logging.getLogger(__name__)

CARD = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def gather(
    source: str,
    folder: Path,
    *,
    dtype: str,
    license: str | None = None,
    tuned: dict[str, Any] | None = None,
    is_adapter: bool = False,
) -> Facts:
    """Return what is known of a model that is to be exported.

    Args:
        source: training run, checkpoint, folder or hub id.
        folder: where it goes.
        dtype: of the stored weights.
        license: by its name on the hub; None takes that of the model it was made from.
        tuned: as `find_tuned` returns it.
        is_adapter: whether adapters are written alone.

    Raises:
        RuntimeError: if a run has saved nothing yet.
    """
    checkpoint = find_checkpoint(Path(source))
    run = None if checkpoint is None else read_run(checkpoint)
    made_from = source if checkpoint is None else None if run is None else _started(run.config)
    return Facts(
        folder=shown(str(folder)),
        model=read_config(source if checkpoint is None else checkpoint / MODEL),
        dtype=dtype,
        source=shown(source),
        base_model=made_from if made_from is not None and is_hub_id(made_from) else None,
        license=license or (None if made_from is None else _license(Path(made_from))),
        run=run,
        tuned=None if tuned is None else tuned_facts(tuned),
        is_adapter=is_adapter,
    )


def _started(config: Any) -> str | None:
    start = config.get("init_from")
    return start if isinstance(start, str) else None


def is_hub_id(name: str) -> bool:
    """Whether a name is an id on the hub, not a folder: here, or one that was here."""
    local = Path(name)
    return bool(_HUB_ID.fullmatch(name)) and not local.exists() and not local.parent.is_dir()


def _license(folder: Path) -> str | None:
    """Return the license that a folder's own card names."""
    found = front_matter(folder / CARD).get("license")
    return found if isinstance(found, str) else None


def front_matter(card: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty if there is no card, or none that can be read."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\r?\n(.*?)\r?\n---\s", text, re.S)
    try:
        values = yaml.safe_load(found[1]) if found and not is_too_deep(found[1]) else None
    except (yaml.YAMLError, ValueError):
        values = None
    return values if isinstance(values, dict) else {}


def find_tuned(source: str) -> dict[str, Any] | None:
    """Return the content of the file that `tune` has left for a model, if it can be used."""
    try:
        content = tuned_for(source)
        if content is not None:
            tuned_facts(content)
    except ValueError as error:
        logger.warning("the card will name no decoding settings: %s", error)
        return None
    return content


def tuned_facts(content: dict[str, Any]) -> Tuned:
    """Return what a card says of the content of a file that `tune` wrote.

    Raises:
        ValueError: if it does not say what was measured.
    """
    try:
        measured, identity = content["measured"], content["identity"]
        acceptance = measured["acceptance"]
        return Tuned(
            settings=tuple(f"{name}={value}" for name, value in content["decoding"].items()),
            strategy=str(measured["strategy"]),
            exit_layer=measured["exit_layer"],
            num_speculations=measured["num_speculations"],
            acceptance=None if acceptance is None else _interval(acceptance),
            speedup=_interval(measured["speedup"]),
            speed=_interval(measured["speed"]),
            base_speed=_interval(measured["base_speed"]),
            prompts=_shown_set(str(content["prompts"])),
            num_prompts=int(content["num_prompts"]),
            dtype=identity.dtype,
            device=identity.device,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            "the tuned settings do not say what was measured: run tune again"
        ) from None


def _interval(values: dict[str, Any]) -> Interval:
    return Interval(*(float(values[name]) for name in ("value", "low", "high")))


def _shown_set(prompts: str) -> str:
    name, colon, file = prompts.partition(":")
    return f"{name}:{shown(file)}" if colon else shown(prompts)
