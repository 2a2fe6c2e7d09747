"""The section of a card that says how to decode faster, which `tune` brings up to date."""

import os
import shlex
from pathlib import Path
from typing import Any

from inference.card.facts import Tuned, Validation
from inference.card.gather import CARD, tuned_facts
from inference.card.recipe import code, shown
from inference.measure.intervals import Interval
from inference.sweep.config import LENGTHS
from inference.sweep.halving import Setting, candidates, predicted_speedup

BEGIN, END = "<!-- decoding: tune writes this part -->", "<!-- end of decoding -->"


def promising(validation: Validation | None) -> tuple[Setting, float] | None:
    """Return exit and draft length that agreement promises most of, and the speedup it promises.

    Agreement is taken for acceptance, and an exit to cost its layers; see `predicted_speedup`.
    None where nothing was measured, or nothing promises to be faster.
    """
    if validation is None:
        return None
    *below, last = validation.exits or (None,)
    if last is None:
        return None
    same = {x.exit_layer: x.agreement for x in below if x is not None and x.agreement is not None}
    costs = {e: e / last.exit_layer for e in same}
    for exit_layer, length in candidates(same, costs, LENGTHS, most=1):
        speedup = predicted_speedup(same[exit_layer], costs[exit_layer], length)
        return ((exit_layer, length), speedup) if speedup > 1 else None
    return None


def decoding_section(folder: str, tuned: Tuned | None, validation: Validation | None) -> str:
    """Return the section, between its markers.

    Args:
        folder: of the model, as it is written in commands.
        tuned: what was measured, if anything was.
        validation: of its exits; where nothing was tuned it says what to try.
    """
    lines = _untuned(folder, validation) if tuned is None else _tuned(folder, tuned)
    return "\n".join((BEGIN, "## Decode faster", "", *lines, END))


def _command(command: str, folder: str, keys: str) -> list[str]:
    return ["```sh", f"python -m inference {command} {shlex.quote(folder)} {keys}", "```"]


def _untuned(folder: str, validation: Validation | None) -> list[str]:
    lines = [
        "Not measured yet. This finds the fastest settings for texts like those of `prompts.txt`, "
        "one prompt a line, writes them here, and has `generate` use them:",
        "",
        *_command("tune", folder, "prompts=prompts.txt"),
        "",
    ]
    guess = promising(validation)
    if guess is None:
        lines += ["Until then, `strategy=adaptive` chooses for itself:", ""]
        return [*lines, *_command("generate", folder, 'prompt="The" strategy=adaptive')]
    (exit_layer, length), speedup = guess
    lines += [
        f"To begin with: by the agreement of exits, and counting layers alone, drafts of {length} "
        f"at exit {exit_layer} promise at most {speedup:.1f}x.",
        "",
    ]
    keys = f"strategy=self_speculative exit_layer={exit_layer} num_speculations={length}"
    return [*lines, *_command("generate", folder, f'prompt="The" {keys} compare=true')]


def _tuned(folder: str, tuned: Tuned) -> list[str]:
    lines = [_measured(tuned), ""]
    if tuned.is_plain:
        lines += ["So plain decoding is best there. Elsewhere, measure again:", ""]
        return [*lines, *_command("tune", folder, "prompts=prompts.txt")]
    return [*lines, *_command("generate", folder, f'prompt="The" {" ".join(tuned.settings)}')]


def _measured(tuned: Tuned) -> str:
    way, gain = f"`strategy={tuned.strategy}`", tuned.speedup
    if tuned.exit_layer is not None:
        way += f" with drafts of {tuned.num_speculations} at exit {tuned.exit_layer}"
    text = f"{way} was {gain.value:.2f}x as fast as plain decoding ({gain.low:.2f} to "
    text += f"{gain.high:.2f}): {_rate(tuned.speed)} tokens/s against {_rate(tuned.base_speed)}"
    if tuned.acceptance is not None:
        text += f", {tuned.acceptance.value:.0%} of the drafts accepted"
    measured = f"Measured by `tune` on {tuned.num_prompts} prompts of {code(tuned.prompts)}"
    return f"{text}. {measured}, in {tuned.dtype} on {tuned.device}."


def _rate(speed: Interval) -> str:
    return f"{speed.value:,.0f}" if speed.value >= 100 else f"{speed.value:.3g}"


def update_card(folder: Path, content: dict[str, Any]) -> Path | None:
    """Bring the section up to date with what `tune` has written beside a model.

    The rest of the card stays as it is, and so does a card that has no such section.

    Returns:
        The card; None if there is none to change.

    Raises:
        ValueError: if the content does not say what was measured.
    """
    card = folder / CARD
    if not card.is_file():
        return None
    text = card.read_bytes()
    begin, end = text.find(BEGIN.encode()), text.find(END.encode())
    if not 0 <= begin < end:
        return None
    section = decoding_section(shown(str(folder)), tuned_facts(content), None).encode()
    new = card.with_name(CARD + ".tmp")
    with new.open("wb") as file:
        file.write(text[:begin] + section + text[end + len(END) :])
        file.flush()
        os.fsync(file.fileno())
    new.replace(card)
    return card
