"""The loop of `generate interactive=true`: a line in, its continuation out, until the end."""

import os
from collections.abc import Sequence
from typing import TextIO

from data_pipelines.chat import encode_chat
from inference.command import make_decode
from inference.config import GenerateConfig
from inference.generation import Decode, Generation, Round
from inference.load import Loaded
from inference.report import one_line
from inference.stream import TextStream, show, text_of
from inference.workspace import check_prompt

Message = dict[str, str]
"""`role`, which is user or assistant, and `content`."""


def interact(
    config: GenerateConfig, loaded: Loaded, lines: TextIO, out: TextIO, notes: TextIO
) -> None:
    """Answer line after line; text goes to `out`, the prompt sign and figures to `notes`.

    Ctrl-C stops the generation under way and no more, Ctrl-D (the end of `lines`) ends. A line that
    does not fit the model costs one line of explanation. Each line is a prompt of its own; with
    `chat` it is a turn of one conversation, worded by the tokenizer's chat template.

    Raises:
        ValueError: if a setting does not fit the model, or it has no chat template.
    """
    decode = make_decode(config, loaded)
    if config.chat:
        _ = encode_chat(loaded.tokenizer, [_said("user", "")])  # refuses what has no template
    history = list[Message]()
    sign = "> " if lines.isatty() else ""
    while True:
        try:
            notes.write(sign)
            notes.flush()
            line = _read_line(lines)
        except KeyboardInterrupt:
            notes.write("\n(Ctrl-D ends)\n")
            continue
        if not line:
            return
        if line.strip():
            history = _answer(config, loaded, decode, history, line.rstrip("\n"), (out, notes))


def _read_line(lines: TextIO) -> str:
    try:
        return lines.readline()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"what was typed is not UTF-8 text ({error}): set the terminal to UTF-8"
        ) from None


def _answer(
    config: GenerateConfig,
    loaded: Loaded,
    decode: Decode,
    history: list[Message],
    line: str,
    streams: tuple[TextIO, TextIO],
) -> list[Message]:
    """Continue a line, and return the conversation up to now, which is empty without `chat`."""
    _, notes = streams
    try:
        if config.chat:
            asked = [*history, _said("user", line)]
            prompt_ids, asked = _fitting(config, loaded, asked, notes)
        else:
            prompt_ids, asked = loaded.encode(line), []
        check_prompt(loaded.config, prompt_ids, config.max_new_tokens)
    except ValueError as error:
        notes.write(f"error: {error}\n")
        return history
    tokens = _stream(config, loaded, decode, prompt_ids, streams)
    if not config.chat:
        return []
    reply = text_of(loaded.decode, prompt_ids, tokens, config.stop)
    return [*asked, _said("assistant", reply)]


def _fitting(
    config: GenerateConfig, loaded: Loaded, asked: list[Message], notes: TextIO
) -> tuple[list[int], list[Message]]:
    """Return the conversation as ids, without its oldest turns if it has outgrown the context."""
    room, forgotten = loaded.config.max_position_embeddings - config.max_new_tokens, 0
    while True:
        ids = encode_chat(loaded.tokenizer, asked)
        if len(ids) <= room or len(asked) == 1:
            break
        asked, forgotten = asked[2:], forgotten + 1
    if forgotten:
        notes.write(f"[turns that no longer fit the context and are forgotten: {forgotten}]\n")
    return ids, asked


def _stream(
    config: GenerateConfig,
    loaded: Loaded,
    decode: Decode,
    prompt_ids: Sequence[int],
    streams: tuple[TextIO, TextIO],
) -> list[int]:
    """Write the continuation as it comes, then its figures; return its tokens, all or some."""
    out, notes = streams
    colour = out.isatty() and not os.environ.get("NO_COLOR")
    stream, rounds, end = TextStream(loaded.decode, prompt_ids, config.stop), list[Round](), ""
    try:
        for each in show(decode(prompt_ids), stream, out, colour=colour):
            rounds.append(each)
    except KeyboardInterrupt:
        out.write(stream.finish())
        end = ", stopped"
    out.write("\n")
    out.flush()
    generation = Generation(tuple(rounds))
    if rounds:
        notes.write(f"[{one_line(generation)}{end}]\n")
        notes.flush()
    return generation.token_ids


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}
