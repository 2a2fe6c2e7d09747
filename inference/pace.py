"""How ranks with different prompts keep in step while they share sharded weights.

A pass gathers every layer from all ranks, so whatever one rank runs, all have to run. A round of a
batch is a fixed order of passes: prompts are read, drafts made, verification. At its beginning the
ranks agree on how many there are of each; a rank that needs fewer, or has nothing to do any more,
runs the others on no rows, which costs the gathers and nothing else.

Letters: R rows, S positions, D width, E head width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from models.llama import Llama
from models.plan import LayerPlan
from models.rope import rotary_angles
from models.tokens import Tokens
from parallel.reduce import max_over_ranks
from parallel.together import together

Plans = tuple[LayerPlan, LayerPlan | None]
"""What runs a token at a time, and what goes on from there to verify, if anything does."""


class Pace(Protocol):
    """What a batch asks before and while it runs a round."""

    def begin(self, plans: Plans, *, reads: int, steps: int) -> bool:
        """Begin a round in which this rank reads so many prompts and so many tokens of its rows.

        Returns:
            Whether there is a round: some rank has something to do.
        """
        ...

    def run(self, x: Tensor, tokens: Tokens, plan: LayerPlan) -> Tensor:
        """Run a plan on ids (R, S) or streams (R, S, D); return its last exit (R, S, D)."""
        ...

    def next_phase(self) -> None:
        """End the phase of the round, reads, steps or verification, that this rank is in."""
        ...

    def whole_round(self) -> AbstractContextManager[None]:
        """Return what a round's work is to happen within, whether it fails or not."""
        ...


class Alone:
    """One process, or ranks that share every token: nobody to wait for."""

    def __init__(self, model: Llama) -> None:
        self._model = model

    def begin(self, plans: Plans, *, reads: int, steps: int) -> bool:
        """Return whether there is something to do."""
        return bool(reads or steps)

    def run(self, x: Tensor, tokens: Tokens, plan: LayerPlan) -> Tensor:
        """Run a plan on ids (R, S) or streams (R, S, D); return its last exit (R, S, D)."""
        h: Tensor = self._model(x, tokens, plan)[plan.exits[-1]]
        return h

    def next_phase(self) -> None:
        """Do nothing."""

    def whole_round(self) -> AbstractContextManager[None]:
        """Return what does nothing: errors go where they go."""
        return nullcontext()


class InStep:
    """Ranks of an FSDP-sharded model, each with prompts of its own; one reduction a round."""

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._phases: list[list[LayerPlan]] = []
        """The passes that all ranks have yet to run in this round, by phase."""
        self._is_running = False
        self._failure: Exception | None = None

    def begin(self, plans: Plans, *, reads: int, steps: int) -> bool:
        """Agree on the round; see `Pace.begin`.

        Raises:
            RuntimeError: on every rank, if one has failed since the last round; it is named.
        """
        failed = int(self._failure is not None)
        reads, steps, failed = max_over_ranks([reads, steps, failed])
        if failed:
            together(self._fail, "decoding")
        first, rest = plans
        whole = [first] if rest is None else [first, rest]
        self._phases = [whole * reads, [first] * steps, whole[1:] if steps else []]
        return bool(reads or steps)

    def _fail(self) -> None:
        if self._failure is not None:
            raise self._failure

    def run(self, x: Tensor, tokens: Tokens, plan: LayerPlan) -> Tensor:
        """Run a plan on ids (R, S) or streams (R, S, D); return its last exit (R, S, D)."""
        planned = self._phases[0].pop(0)
        assert plan is planned, "a pass that the other ranks do not run"
        self._is_running = True
        h: Tensor = self._model(x, tokens, plan)[plan.exits[-1]]
        self._is_running = False
        return h

    def next_phase(self) -> None:
        """Run what is left of the phase on no rows."""
        while self._phases[0]:
            self._idle(self._phases[0][0])
        self._phases.pop(0)

    def _idle(self, plan: LayerPlan) -> None:
        """Take part in a pass of the others."""
        config, weight = self._model.config, self._model.model.embed_tokens.weight
        is_first = plan.visits[0].layer == 0
        ids = torch.zeros(0, 1, dtype=torch.long, device=weight.device)  # (0, 1)
        h = torch.zeros(0, 1, config.hidden_size, dtype=weight.dtype, device=weight.device)
        cos, sin = rotary_angles(ids.new_zeros(1, 1), config)  # (1, 1, E)
        tokens = Tokens(cos.to(weight.dtype), sin.to(weight.dtype))
        self.run(ids if is_first else h, tokens, plan)

    @contextmanager
    def whole_round(self) -> Iterator[None]:
        """Run all passes of the round, even if this rank's own work ends earlier or fails.

        A failure between passes is kept until the next round begins, where all ranks learn of it.
        One in the middle of a pass leaves the ranks out of step: then this rank cannot go on, and
        the others end when its process does.
        """
        try:
            yield
        except Exception as error:
            if self._is_running:
                raise
            self._failure = error
        while self._phases:
            self.next_phase()
