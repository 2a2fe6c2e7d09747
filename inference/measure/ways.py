"""Ways of decoding many prompts, side by side: one prompt after another, or in batches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from tqdm import tqdm

from inference.batch import BatchSettings, generate_batch
from inference.command import decode_all, decode_settings, label, make_decode, oracle
from inference.config import GenerateConfig
from inference.generation import Decode, Generation
from inference.load import Loaded
from inference.measure.memory import PeakMemory
from inference.opening import device_of

Ids = Sequence[Sequence[int]]
"""Token ids of several prompts."""
BASELINE = "autoregressive"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of decoding, all of its settings bound."""

    name: str
    run: Callable[[Ids], Iterable[Generation]]
    """Prompts in, their generations out, in order."""
    rows: int = 1
    """Prompts at once."""


@dataclass(slots=True)
class Measured:
    """What one way did: for each repeat, a generation of every prompt, and the seconds of all."""

    way: Way
    memory: PeakMemory
    repeats: list[list[Generation]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each repeat, on the clock."""

    @property
    def generations(self) -> list[Generation]:
        """Those of the first repeat; the others have the same tokens."""
        return self.repeats[0]


def ways_of(config: GenerateConfig, loaded: Loaded, *, compare: bool) -> list[Way]:
    """Return the configured way; before it, if wanted and it is another, the autoregressive one.

    Raises:
        ValueError: if the model has no such exit or layer.
    """
    rows, decode = config.batch_size, make_decode(config, loaded)
    plain = oracle(config, loaded)
    batch, settings = BatchSettings(rows=rows), decode_settings(config, loaded)

    def one_by_one(decode: Decode) -> Callable[[Ids], Iterable[Generation]]:
        return lambda prompts: [Generation(tuple(decode(ids))) for ids in prompts]

    def plain_batch(prompts: Ids) -> Iterable[Generation]:
        return generate_batch(loaded.model, prompts, batch=batch, settings=settings)

    def this_batch(prompts: Ids) -> Iterable[Generation]:
        return decode_all(config, loaded, decode, [list(ids) for ids in prompts])

    base = Way(BASELINE, one_by_one(plain) if rows == 1 else plain_batch, rows)
    if config.strategy == BASELINE:
        return [base]
    ours = Way(label(config), one_by_one(decode) if rows == 1 else this_batch, rows)
    return [base, ours] if compare else [ours]


def measure(ways: Sequence[Way], prompts: Ids, loaded: Loaded, *, repeats: int) -> list[Measured]:
    """Measure all ways on the same prompts; they take turns, and who goes first changes.

    One prompt after another, turns change with every prompt; in batches, with every repeat. Each
    way has one warm-up, which is not counted. A bar on a terminal shows how far it is.
    """
    device = device_of(loaded)
    found = [Measured(way, PeakMemory(device)) for way in ways]
    for way in ways:
        _ = list(way.run(prompts[: way.rows]))
    whole = any(way.rows > 1 for way in ways)
    turns = [prompts] if whole else [[ids] for ids in prompts]
    with tqdm(
        total=len(ways) * repeats * len(prompts), unit="prompt", dynamic_ncols=True, disable=None
    ) as bar:  # disable=None: only a terminal gets a bar
        for repeat in range(repeats):
            for each in found:
                each.repeats.append([])
                each.seconds.append(0.0)
            for turn, some in enumerate(turns):
                first = (repeat + turn) % len(found)
                for each in (*found[first:], *found[:first]):
                    _play(each, some)
                    bar.update(len(some))
    return found


def _play(measured: Measured, prompts: Ids) -> None:
    measured.memory.begin()
    started = perf_counter()
    measured.repeats[-1] += measured.way.run(prompts)
    measured.seconds[-1] += perf_counter() - started
    measured.memory.end()
