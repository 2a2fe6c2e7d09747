"""A model and its tokenizer from wherever they are: a training run, a checkpoint of it, a folder
in Hugging Face form, or the hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.tokenize import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from inference.ranks import Ranks, load_on_ranks
from models.config import LlamaConfig
from models.hf import load_pretrained, read_config
from models.json_file import read_object
from models.llama import Llama
from parallel.base import read_base
from parallel.checkpoint import MODEL, TOKENIZER, find_checkpoint, read_model
from parallel.pieces import pieces_of_whole, read_checkpoint_pieces
from parallel.verified import verify


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model ready to decode, and how text enters and leaves it."""

    model: Llama
    tokenizer: Tokenizer
    config: LlamaConfig
    origin: str
    """Folder or hub id that it was really read from; for a run, of the checkpoint."""
    prefix: tuple[int, ...]
    """Ids before every prompt: as the tokenizer would add, none for runs, whose data has none."""
    eos_ids: frozenset[int]
    """Each of them ends a sequence."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt.

        Raises:
            ValueError: if there is nothing to continue.
        """
        try:
            _ = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the prompt is not UTF-8 text ({error}): convert it") from None
        ids = [*self.prefix, *self.tokenizer.encode(text)]
        if not ids:
            raise ValueError(
                "the prompt is empty, and this tokenizer has no token to begin a text with: give "
                "at least one character"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids.

        Raises:
            ValueError: if the model made an id that the tokenizer does not have.
        """
        if ids and max(ids) >= self.tokenizer.vocab_size:
            raise ValueError(
                f"the model made token {max(ids)}, its tokenizer has {self.tokenizer.vocab_size} "
                f"of its {self.config.vocab_size} tokens: {self.origin} has another model's "
                "tokenizer, or is hardly trained"
            )
        return self.tokenizer.decode(ids)


def load(
    source: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    ranks: Ranks | None = None,
) -> Loaded:
    """Return the model of a training run (its latest checkpoint), one checkpoint, folder or hub id.

    Shards written by any number of ranks are read straight into the model; with `ranks`, into
    this rank's part of it.

    Raises:
        ValueError: if the source holds no model, the tokenizer is another model's, or the ranks
            cannot share the model.
        RuntimeError: if a checkpoint is missing or damaged, or the hub is out of reach.
    """
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is None:
        model, tokenizer = _pretrained(source, dtype, device, ranks), load_tokenizer(source)
        prefix, eos_ids = _prefix(tokenizer), _eos_ids(Path(source))
    else:
        model = _read(checkpoint, dtype, device, ranks)
        tokenizer = load_tokenizer(checkpoint / TOKENIZER)
        prefix, eos_ids = (), frozenset[int]()
    origin = str(checkpoint or source)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{model.config.vocab_size}: put the model's own tokenizer there"
        )
    return Loaded(
        model.eval(), tokenizer, model.config, origin, prefix, eos_ids | {tokenizer.eos_id}
    )


def _pretrained(
    source: str | Path, dtype: torch.dtype, device: torch.device | str, ranks: Ranks | None
) -> Llama:
    if ranks is None:
        return load_pretrained(source, dtype=dtype, device=device)
    config = read_config(source)
    return load_on_ranks(config, source, is_checkpoint=False, dtype=dtype, ranks=ranks)


def _read(
    checkpoint: Path, dtype: torch.dtype, device: torch.device | str, ranks: Ranks | None
) -> Llama:
    verify(checkpoint, (MODEL, TOKENIZER))
    config = read_config(checkpoint / MODEL)
    if ranks is not None:
        return load_on_ranks(config, checkpoint, is_checkpoint=True, dtype=dtype, ranks=ranks)
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    if read_base(checkpoint) is None:
        read_model(checkpoint, model)
    else:
        read_checkpoint_pieces(checkpoint, pieces_of_whole(model))
    return model


def _prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return what upstream puts before a text; SmolLM2, say, has a bos token but does not."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tuple(tokenizer.tokenizer("")["input_ids"])
    return () if tokenizer.bos_id is None else (tokenizer.bos_id,)


def _eos_ids(folder: Path) -> frozenset[int]:
    """Return the ends of sequence that a folder's generation config lists, if it has one."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return frozenset()
    found = read_object(file).get("eos_token_id")
    listed = [] if found is None else found if isinstance(found, list) else [found]
    wrong = [each for each in listed if not isinstance(each, int) or each < 0]
    if wrong:
        raise ValueError(f"{file}: eos_token_id is {found!r:.80}; ids of tokens are needed")
    return frozenset(listed)
