"""Text to token ids and back, by SentencePiece or Hugging Face: the only file to import either."""

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import sentencepiece
from transformers import AutoTokenizer

from data_pipelines.hugging_face_form import to_hugging_face

logger = logging.getLogger(__name__)

MODEL_FILE = "tokenizer.model"
_SENTENCE_CHARACTERS = 4096
_SENTENCE_BYTES = 4 * _SENTENCE_CHARACTERS
_SAMPLE_CHARACTERS = 8_000_000


class Tokenizer(Protocol):
    """What every tokenizer here offers."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, so that an embedding of so many rows is enough."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Begins a text, if the tokenizer has such a token; prepared data does not contain it."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer` and `AutoTokenizer` read back to the same ids."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SentencePieceTokenizer:
    """A SentencePiece model."""

    processor: Any
    """The sentencepiece.SentencePieceProcessor."""

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self.processor.get_piece_size())

    @property
    def bos_id(self) -> int | None:
        """The id of the piece that begins a text, if there is one."""
        return None if self.processor.bos_id() < 0 else int(self.processor.bos_id())

    @property
    def eos_id(self) -> int:
        """The id of the piece that ends a document."""
        return int(self.processor.eos_id())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        return cast(list[int], self.processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return cast(str, self.processor.decode(list(ids)))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.model and the same tokenizer as Hugging Face files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.processor.serialized_model_proto())
        backend = to_hugging_face(self.processor.serialized_model_proto())
        if backend is None:
            logger.warning(
                "%s has no exact Hugging Face form (only byte-pair models without normalisation "
                "have): AutoTokenizer will not load it",
                folder / MODEL_FILE,
            )
            return
        (folder / "tokenizer.json").write_text(backend, encoding="utf-8")
        settings = json.dumps(self._settings(), indent=2)
        (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.processor.unk_id()}
        special = {
            f"{name}_token": self.processor.id_to_piece(i)
            for name, i in ids.items()
            if i is not None
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # as SentencePiece: "</s>" in a text is just text
            **special,
        }


@dataclass(frozen=True, slots=True, eq=False)
class HuggingFaceTokenizer:
    """A tokenizer of transformers."""

    tokenizer: Any
    """The transformers.PreTrainedTokenizerBase."""
    vocab_size: int
    """One more than the largest id, added tokens included."""

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, if there is one."""
        return cast(int | None, self.tokenizer.bos_token_id)

    @property
    def eos_id(self) -> int:
        """The id of the token that ends a document."""
        return cast(int, self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return cast(list[int], encoding["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's own files."""
        self.tokenizer.save_pretrained(str(folder))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a SentencePiece file, a folder, or a Hugging Face hub id.

    A folder that `SentencePieceTokenizer.save` wrote gives the SentencePiece model, which is faster
    than its Hugging Face form; any other folder with Hugging Face files is theirs to read.

    Raises:
        ValueError: if there is no such tokenizer, or it has no token that ends a document.
    """
    local = Path(path)
    if local.is_file():
        tokenizer: Tokenizer = _load_sentencepiece(local)
    elif _is_sentencepiece_folder(local):
        tokenizer = _load_sentencepiece(local / MODEL_FILE)
    elif local.exists() or may_be_hub_id(local):
        tokenizer = _load_hugging_face(str(path))
    else:
        raise ValueError(f"tokenizer {path}: there is no such file or folder")
    if tokenizer.eos_id is None or tokenizer.eos_id < 0:
        raise ValueError(
            f"tokenizer {path} has no end-of-sequence token, which separates documents: "
            "set its eos_token, or choose another tokenizer"
        )
    return tokenizer


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (RuntimeError, UnicodeDecodeError):  # it quotes what it cannot read
        raise ValueError(
            f"tokenizer {path} is not a SentencePiece model: give a .model file, a folder with "
            "tokenizer files, or a hub id"
        ) from None
    return SentencePieceTokenizer(processor)


def _is_sentencepiece_folder(folder: Path) -> bool:
    """Whether tokenizer.model says all: nothing is beside it but, perhaps, our own form of it."""
    model, backend = folder / MODEL_FILE, folder / "tokenizer.json"
    if not model.is_file():
        return False
    if not backend.is_file():
        return not (folder / "tokenizer_config.json").is_file()
    return to_hugging_face(model.read_bytes()) == backend.read_text(encoding="utf-8")


def may_be_hub_id(path: Path) -> bool:
    """Whether what is not here may be NAME or OWNER/NAME of the hub: asking it takes its time."""
    names_a_file = path.is_absolute() or path.suffix == ".model" or len(path.parts) > 2
    beside_something = len(path.parts) == 2 and path.parent.exists()
    return not names_a_file and not beside_something


def _load_hugging_face(path: str) -> HuggingFaceTokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **_gguf(Path(path)))
    except Exception as error:  # transformers and tokenizers raise all kinds, bare ones included
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"tokenizer {path}: no SentencePiece file or tokenizer folder here, and transformers "
            f"cannot load it: {reason}"
        ) from None
    return HuggingFaceTokenizer(tokenizer, max(tokenizer.get_vocab().values()) + 1)


def _gguf(folder: Path) -> dict[str, str]:
    """Name a folder's GGUF file, which then holds the tokenizer, if nothing else there can."""
    files = sorted(folder.glob("*.gguf"))
    return {"gguf_file": files[0].name} if files and not any(folder.glob("*.json")) else {}


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, folder: str | Path
) -> SentencePieceTokenizer:
    """Train a lossless byte-pair tokenizer on the first 8 million characters, and save it.

    Lossless means that decode(encode(text)) == text for every text without U+2581: nothing is
    normalised, runs of spaces are pieces, and characters without a piece are spelt in bytes. The
    same texts give the same file.

    Raises:
        ValueError: if the text does not fill the vocabulary, or the vocabulary does not hold its
            characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_SENTENCE_BYTES,
            unk_id=0,
            eos_id=1,
            bos_id=-1,  # documents are only ever separated by eos, so bos would stay untrained
            pad_id=-1,
            num_threads=1,  # is written into the file, so it may not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_vocabulary_error(vocab_size, str(error))) from None
    tokenizer = SentencePieceTokenizer(
        sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    )
    tokenizer.save(folder)
    return tokenizer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts to what the trainer takes: it skips, or fails on, anything much longer."""
    left = _SAMPLE_CHARACTERS
    for text in texts:
        for start in range(0, min(len(text), left), _SENTENCE_CHARACTERS):
            yield text[start : start + _SENTENCE_CHARACTERS]
        left -= len(text)
        if left <= 0:
            return


def _vocabulary_error(vocab_size: int, message: str) -> str:
    key = f"data.tokenizer.sentencepiece.vocab_size {vocab_size}"
    if "sentences_.empty()" in message:
        return (
            "data.tokenizer.sentencepiece: no document with text is left to train on: lower "
            "data.valid_fraction, or give more text"
        )
    if most := re.search(r"value <= (\d+)", message):
        return f"{key} is too large for the text: give at most {most[1]}, or more text"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"{key} does not hold the characters of the text: give at least {least[1]}"
    return f"{key}: sentencepiece cannot train on this text: {message.split(']')[-1].strip()}"
