"""The loss curve of the whole recipe on one process in float64, to be kept as JSON."""

import hashlib
import json
from pathlib import Path

import torch

from parallel.config import ParallelConfig
from parallel.world import start
from tests.distributed import recipe
from tests.ranks import run_ranks

FILE = Path(__file__).parent / "recipe.json"
STEPS = 50


def _losses() -> list[float]:
    world = start(device="cpu")
    engine = recipe.make_engine(recipe.model_config(), ParallelConfig(), world)
    return recipe.engine_steps(engine, world, steps=[i % recipe.STEPS for i in range(STEPS)])


def describe() -> dict[str, object]:
    """What the curve depends on, and the curve."""
    settings = (recipe.model_config(), recipe.OPTIM, recipe.DROPOUT, recipe.EXITS)
    return {
        "torch": torch.__version__,
        "config": hashlib.blake2b(repr(settings).encode(), digest_size=8).hexdigest(),
        "losses": run_ranks(_losses, world=1)[0],
    }


def write() -> None:
    """Replace the stored curve; the commit that does it says why the numbers changed."""
    FILE.write_text(json.dumps(describe(), indent=1) + "\n")
