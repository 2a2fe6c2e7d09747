"""Texts as token ids for scoring, cut as lm-evaluation-harness's own models cut them."""

from collections.abc import Sequence

from inference.evaluate.likelihood import Question
from inference.load import Loaded


def encode_text(loaded: Loaded, text: str) -> tuple[int, ...]:
    """Return the ids of a text with what the tokenizer puts before every text, if anything."""
    return (*loaded.prefix, *loaded.tokenizer.encode(text))


def first_token(loaded: Loaded) -> int:
    """Return what stands before a text that has no context: the token that begins or ends one."""
    bos = loaded.tokenizer.bos_id
    return loaded.tokenizer.eos_id if bos is None else bos


def as_question(loaded: Loaded, context: str, continuation: str) -> Question:
    """Return a context and its continuation, cut where the context's tokens end.

    Spaces between them belong to the continuation, since tokens begin with them. The whole is
    encoded at once and cut at the length of the context; a continuation that melts into the
    context's last token is encoded alone instead.

    Raises:
        ValueError: if the continuation is empty.
    """
    first = first_token(loaded)
    if not context:
        ids = tuple(loaded.tokenizer.encode(continuation))
        before, after = ((first,), ids) if ids[:1] != (first,) else (ids[:1], ids[1:])
    else:
        short = context.rstrip()
        whole = encode_text(loaded, context + continuation)
        before = encode_text(loaded, short) or (first,)
        after = whole[len(encode_text(loaded, short)) :]
        after = after or tuple(loaded.tokenizer.encode(context[len(short) :] + continuation))
    if not after:
        raise ValueError(f"the continuation of {context[-40:]!r} is empty: there is none to score")
    return Question(before, after)


def rolling_questions(ids: Sequence[int], first: int, max_length: int) -> list[Question]:
    """Return questions that ask for every token of a text once, each with all that fits before it.

    The first window begins after the token `first`; each later one predicts as many new tokens as
    fit, the last with as much context as there is room for.
    """
    questions, done = list[Question](), 0
    while done < len(ids):
        end = min(done + max_length, len(ids))
        start = end - max_length - 1 if done else -1
        before = (first, *ids[:done]) if start < 0 else tuple(ids[start:done])
        questions.append(Question(tuple(before), tuple(ids[done:end])))
        done = end
    return questions
