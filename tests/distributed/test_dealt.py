"""Ranks with prompts of their own and sharded weights: unequal work neither hangs nor matters."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from inference.batch import BatchSettings, generate_batch
from inference.generation import Generation, Settings
from inference.pace import InStep
from inference.ranks import generate_dealt
from inference.stop import StopStrings
from parallel.world import start
from tests.distributed.decoding import (
    CONFIGS,
    PROMPTS,
    WARM,
    Collectives,
    alone,
    drafting_batch,
    export,
    on_this_rank,
    quiet_llama,
)
from tests.ranks import RankError, run_ranks

pytestmark = pytest.mark.ranks

MODEL = quiet_llama(CONFIGS["grouped"])
LONG, SHORT = list(range(60)), [5]
EOS = alone(MODEL, Settings(max_new_tokens=2), [SHORT])[0][1]
"""Ends SHORT's text after two tokens."""
GREEDY = Settings(max_new_tokens=20, eos_ids=frozenset({EOS}))
SAMPLED = Settings(max_new_tokens=6, sampling=WARM, seed=5)
PLAIN = BatchSettings(rows=2)


def _letters(ids: Sequence[int]) -> str:
    return "".join(chr(0x4E00 + token) for token in ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(MODEL, tmp_path_factory.mktemp("dealt") / "model")


def _ids(generations: Sequence[Generation]) -> list[list[int]]:
    return [each.token_ids for each in generations]


def _own(
    folder: str,
    hands: list[list[list[int]]],
    batch: BatchSettings,
    settings: Settings,
    reshard: bool = True,
) -> list[list[int]]:
    """On a rank: what becomes of the prompts in its hand."""
    model = on_this_rank(folder, "data", reshard=reshard)
    own = hands[start(device="cpu").rank]
    return _ids(
        list(generate_batch(model, own, batch=batch, settings=settings, pace=InStep(model)))
    )


@pytest.mark.parametrize(
    "hands",
    [
        [[SHORT], [LONG]],  # the first ends after two tokens, the other goes on
        [[SHORT, LONG, [7], *PROMPTS], [[3]]],
        [[], [LONG, SHORT]],
        [[SHORT], [], [LONG, [9, 9], SHORT], [[1]]],
    ],
    ids=["one ends early", "one has more", "one has none", "four ranks"],
)
@pytest.mark.parametrize("batch", [PLAIN, drafting_batch(2)], ids=["plain", "drafting"])
def test_unequal_prompts_decode_to_what_each_gives_alone(
    folder: str, hands: list[list[list[int]]], batch: BatchSettings
) -> None:
    found = run_ranks(_own, folder, hands, batch, GREEDY, world=len(hands))
    assert found == [alone(MODEL, GREEDY, hand) for hand in hands]
    assert len(alone(MODEL, GREEDY, [SHORT])[0]) == 2
    assert len(alone(MODEL, GREEDY, [LONG])[0]) > 10


def test_a_stop_string_ends_one_rank_and_not_the_other(folder: str) -> None:
    tokens = alone(MODEL, Settings(max_new_tokens=12), [LONG])[0]
    stop = StopStrings((_letters(tokens[3:5]),), _letters)
    settings = Settings(max_new_tokens=12, stop=stop)
    hands = [[LONG], [SHORT]]
    found = run_ranks(_own, folder, hands, drafting_batch(1), settings, world=2)
    assert found == [alone(MODEL, settings, hand) for hand in hands]
    assert len(found[0][0]) == 5


def test_layers_that_stay_gathered_give_the_same_tokens(folder: str) -> None:
    hands = [[SHORT], [LONG, [7]]]
    found = run_ranks(_own, folder, hands, drafting_batch(2), GREEDY, False, world=2)
    assert found == [alone(MODEL, GREEDY, hand) for hand in hands]


def _dealt(folder: str, prompts: list[list[int]], settings: Settings) -> list[list[int]]:
    model, world = on_this_rank(folder, "data"), start(device="cpu")
    return _ids(generate_dealt(model, prompts, batch=PLAIN, settings=settings, world=world))


@pytest.mark.parametrize("count", [1, 5])
def test_rank_0_has_all_generations_in_the_order_of_the_prompts(folder: str, count: int) -> None:
    prompts = [LONG, SHORT, [3], [90, 4], LONG[5:]][:count]
    found = run_ranks(_dealt, folder, prompts, SAMPLED, world=2)
    batch = {"batch": PLAIN, "settings": SAMPLED}
    assert found == [_ids(list(generate_batch(MODEL, prompts, **batch))), []]


def _refuse(ids: Tensor, scores: Tensor) -> Tensor:
    """Fail in the middle of the one text that begins with 9."""
    if int(ids[0, 0]) == 9 and ids.shape[1] > 4:
        raise LookupError("a processor that does not like 9")
    return scores


def _failing(folder: str, hands: list[list[list[int]]], rows: int) -> tuple[str, list[list[int]]]:
    model = on_this_rank(folder, "data")
    own, settings = (
        hands[start(device="cpu").rank],
        Settings(max_new_tokens=20, processors=[_refuse]),
    )
    batch = {"batch": drafting_batch(rows), "pace": InStep(model)}
    try:
        list(generate_batch(model, own, settings=settings, **batch))
    except RuntimeError as error:
        again = {"batch": PLAIN, "settings": Settings(max_new_tokens=2), "pace": InStep(model)}
        return str(error), _ids(list(generate_batch(model, [LONG], **again)))
    return "nothing failed", []


@pytest.mark.parametrize("rows", [1, 2])
def test_a_rank_that_fails_is_named_by_all_and_nobody_waits(folder: str, rows: int) -> None:
    hands = [[LONG, SHORT], [[7], [9, 1]], [], [LONG]]
    found = run_ranks(_failing, folder, hands, rows, world=4)
    message = "decoding failed on rank 1: LookupError: a processor that does not like 9"
    assert [each[0] for each in found] == [message] * 4
    # The model is as good as before.
    assert [each[1] for each in found] == [alone(MODEL, Settings(max_new_tokens=2), [LONG])] * 4


def _broken(folder: str) -> None:
    model = on_this_rank(folder, "data")
    if start(device="cpu").rank == 1:
        model.layers["2"].mlp.register_forward_pre_hook(_break)
    pace = InStep(model)
    list(generate_batch(model, [LONG], batch=PLAIN, settings=GREEDY, pace=pace))


def _break(*_: object) -> None:
    raise MemoryError("no memory within a layer")


def test_a_rank_that_fails_within_a_pass_ends_at_once_with_its_own_error(folder: str) -> None:
    with pytest.raises(RankError, match="no memory within a layer"):
        run_ranks(_broken, folder, world=2)


def _gathers(folder: str, hands: list[list[list[int]]], reshard: bool) -> list[int]:
    """On a rank: how many gathers the first and the second time of the same work have."""
    model = on_this_rank(folder, "data", reshard=reshard)
    own, counts = hands[start(device="cpu").rank], []
    settings = Settings(max_new_tokens=4)
    for _ in range(2):
        with Collectives() as seen:
            pace = InStep(model)
            list(generate_batch(model, own, batch=PLAIN, settings=settings, pace=pace))
        counts.append(seen.counts["_allgather_base_"])
    return counts


def test_every_pass_gathers_every_layer_once_or_only_the_first_pass_does(folder: str) -> None:
    hands = [[[5]], [[6, 7]]]  # four passes, and one more to read the longer prompt
    assert run_ranks(_gathers, folder, hands, True, world=2) == [[21, 20]] * 2
    assert run_ranks(_gathers, folder, hands, False, world=2) == [[5, 0]] * 2
