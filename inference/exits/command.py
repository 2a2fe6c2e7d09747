"""The command `exits`: for every token of a text, the first exit that already predicts it."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TextIO

from configs.load import load
from inference.command import make_decode
from inference.exits.choices import earliest_exits
from inference.exits.config import ExitsConfig
from inference.generation import Generation
from inference.load import Loaded
from inference.opening import Open
from inference.pictures.exits import save_exits
from inference.report import table_lines
from inference.stream import TextStream
from inference.workspace import check_prompt


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Look at the text that the command line describes.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    config = load(ExitsConfig, None, overrides)
    exits(config, open_model(model, config), sys.stdout)


def exits(config: ExitsConfig, loaded: Loaded, out: TextIO) -> None:
    """Generate, read the text once more at all exits, and write what was found to `out`.

    Raises:
        ValueError: if the prompt does not fit the model.
    """
    prompt_ids = loaded.encode(config.prompt)
    check_prompt(loaded.config, prompt_ids, config.max_new_tokens)
    decode = make_decode(config.decoding(), loaded)
    token_ids = Generation(tuple(decode(prompt_ids))).token_ids
    found = earliest_exits(loaded.model, prompt_ids, token_ids)
    pieces = token_texts(loaded, prompt_ids, token_ids)
    depth = loaded.config.num_hidden_layers
    if config.output == "json":
        values = {"prompt": config.prompt, "tokens": pieces, "token_ids": token_ids}
        origin = {"model": loaded.origin, "num_layers": depth, "dtype": config.dtype}
        out.write(json.dumps(values | {"exits": found} | origin) + "\n")
    else:
        out.writelines(line + "\n" for line in exits_table(found, depth))
    if config.picture is not None:
        save_exits(config.prompt, pieces, found, depth, loaded.origin, Path(config.picture))


def token_texts(loaded: Loaded, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text; together they are it.

    The first tokens of a character of several add nothing, its last one adds it.
    """
    stream = TextStream(loaded.decode, prompt_ids)
    pieces = [stream.add([token]) for token in token_ids]
    pieces[-1] += stream.finish()
    return pieces


def exits_table(found: Sequence[int], depth: int) -> list[str]:
    """Return the lines of a table: by exit, tokens that it is the first to predict, and so far."""
    counts, so_far = Counter(found), 0
    rows = [("exit", "first to predict", "share", "predicted so far")]
    for e in range(1, depth + 1):
        so_far += counts[e]
        share, total = counts[e] / len(found), so_far / len(found)
        rows.append((str(e), str(counts[e]), f"{share:.3f}", f"{total:.3f}"))
    mean = f"{len(found)} tokens, on average predicted by exit {fmean(found):.1f} of {depth}"
    return [*table_lines(rows), mean]
