"""A SentencePiece model as the content of a Hugging Face tokenizer.json, where that is exact."""

from typing import Any

import tokenizers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers

SPACE = "▁"
"""SentencePiece writes a space as U+2581; a U+2581 in the text therefore comes back as a space."""


def to_hugging_face(model: bytes) -> str | None:
    """Return the same tokenizer as JSON; None if there is no exact form, or it is not a model.

    Byte-pair merges are applied by score, which becomes the order of the merges. Unigram models are
    left out because scores are summed in another precision there, and normalisers because they
    differ in corner cases.
    """
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    except DecodeError:
        return None
    if not _is_plain_byte_pair(proto):
        return None
    try:
        return _byte_pair(proto)
    except Exception:  # a damaged model may say anything, and tokenizers raises bare exceptions
        return None


def _byte_pair(proto: Any) -> str:
    kinds = proto.SentencePiece
    (unknown,) = [piece.piece for piece in proto.pieces if piece.type == kinds.UNKNOWN]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece.piece: i for i, piece in enumerate(proto.pieces)},
            _merges([piece for piece in proto.pieces if piece.type == kinds.NORMAL]),
            unk_token=unknown,
            byte_fallback=proto.trainer_spec.byte_fallback,
            fuse_unk=True,
        )
    )
    _set_spaces(backend, prefix=proto.normalizer_spec.add_dummy_prefix)
    special = [p.piece for p in proto.pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN)]
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    )
    return str(backend.to_str(pretty=True))


def _is_plain_byte_pair(proto: Any) -> bool:
    normalizer = proto.normalizer_spec
    return (
        proto.trainer_spec.model_type == proto.trainer_spec.BPE
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and normalizer.escape_whitespaces
        and not normalizer.precompiled_charsmap
        and not normalizer.remove_extra_whitespaces
        and all(piece.type != proto.SentencePiece.USER_DEFINED for piece in proto.pieces)
    )


def _merges(pieces: list[Any]) -> list[tuple[str, str]]:
    """Return every way to join two pieces into a third, best score first."""
    known = {piece.piece for piece in pieces}
    return [
        (whole.piece[:cut], whole.piece[cut:])
        for whole in sorted(pieces, key=lambda piece: -piece.score)
        for cut in range(len(whole.piece) - 1, 0, -1)
        if whole.piece[:cut] in known and whole.piece[cut:] in known
    ]


def _set_spaces(backend: tokenizers.Tokenizer, *, prefix: bool) -> None:
    """Write a space as U+2581 and back, with a space before the text if `prefix`."""
    before = [normalizers.Prepend(SPACE)] if prefix else []
    after = [decoders.Strip(" ", left=1)] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
