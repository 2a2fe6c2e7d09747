"""Ranks that hold parts of one model decode what one process decodes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.adaptive import adaptive
from inference.controller import Controller
from inference.divergence import next_logits
from inference.generation import Generation, Settings
from inference.load import load
from inference.ranks import Ranks
from models.config import LlamaConfig
from models.hf import load_pretrained
from parallel.share import share_numbers
from parallel.tensor import TensorLlama, local_config
from parallel.world import start
from tests.distributed.decoding import (
    CONFIGS,
    PROMPTS,
    WARM,
    Collectives,
    alone,
    decoded,
    export,
    make_tokenizer,
    on_this_rank,
    quiet_llama,
    train_and_save,
)
from tests.ranks import RankError, run_ranks
from tests.tiny import tiny_config

pytestmark = pytest.mark.ranks

IDS = [1, 2, 3, 50, 95]
GREEDY = Settings(max_new_tokens=6, eos_ids=frozenset({11}))
SAMPLED = Settings(max_new_tokens=5, sampling=WARM, seed=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: export(quiet_llama(c), folder / name) for name, c in CONFIGS.items()}


def _logits(folder: str) -> Tensor:
    return next_logits(on_this_rank(folder), IDS)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_one_process_and_the_same_bits_on_every_rank(
    folders: dict[str, str], kind: str, world: int
) -> None:
    folder = folders[kind]
    expected = next_logits(load_pretrained(folder, dtype=torch.float64), IDS)
    found = run_ranks(_logits, folder, world=world)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-10)
    assert all(torch.equal(each, found[0]) for each in found)


def _decoded(folder: str, prompts: list[list[int]]) -> list[list[list[int]]]:
    model = on_this_rank(folder)
    return [decoded(model, settings, prompts) for settings in (GREEDY, SAMPLED)]


@pytest.mark.parametrize(
    ("kind", "world", "count"),
    [("grouped", 2, 3), ("tied_uneven", 2, 2), ("biased", 2, 2), ("grouped", 4, 1)],
)
def test_every_way_of_decoding_gives_the_tokens_of_one_process(
    folders: dict[str, str], kind: str, world: int, count: int
) -> None:
    model, prompts = load_pretrained(folders[kind], dtype=torch.float64), PROMPTS[:count]
    expected = [decoded(model, settings, prompts) for settings in (GREEDY, SAMPLED)]
    assert run_ranks(_decoded, folders[kind], prompts, world=world) == [expected] * world


def _adapted(folder: str) -> list[list[int]]:
    """On a rank: decode by settings that are chosen from times, which no two ranks agree on."""
    model = on_this_rank(folder)
    share = partial(share_numbers, model)
    controller = Controller(4, most=4, share=share)
    settings = Settings(max_new_tokens=24, sampling=WARM)
    way = partial(adaptive, model, controller=controller, settings=settings)
    return [Generation(tuple(way(prompt))).token_ids for prompt in PROMPTS[:2]]


def test_adaptive_decoding_takes_the_decisions_of_rank_0(folders: dict[str, str]) -> None:
    first, second = run_ranks(_adapted, folders["grouped"], world=2)
    assert first == second


def _held(folder: str) -> list[int]:
    model = on_this_rank(folder)
    assert isinstance(model, TensorLlama)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return [matrices, model.config.kv_heads, model.config.num_attention_heads]


def test_a_rank_holds_its_part_of_every_matrix_and_of_the_cache(tmp_path: Path) -> None:
    config = CONFIGS["grouped"]
    model = quiet_llama(config)
    folder = export(model, tmp_path / "model")
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert run_ranks(_held, folder, world=2) == [[matrices // 2, 1, 2]] * 2
    ends = "k_proj.weight", "v_proj.weight"
    kv = sum(p.numel() for name, p in model.named_parameters() if name.endswith(ends))
    # Four ranks share two kv heads, so that each of these is held twice.
    assert run_ranks(_held, folder, world=4) == [[(matrices + kv) // 4, 1, 1]] * 4


def _collectives(folder: str) -> dict[str, int]:
    """On a rank: the collectives of one pass and its logits."""
    model = on_this_rank(folder)
    with Collectives() as seen:
        next_logits(model, IDS)
    return dict(seen.counts)


def test_a_pass_sums_twice_a_layer_and_gathers_once(folders: dict[str, str]) -> None:
    sums = 2 * CONFIGS["grouped"].num_hidden_layers + 1  # and once for the embedding
    wanted = {"allreduce_": sums, "broadcast_": 1, "_allgather_base_": 1}
    assert run_ranks(_collectives, folders["grouped"], world=2) == [wanted] * 2


def _misled(folder: str) -> Tensor:
    """On a rank: ranks that disagree about what was drawn."""
    rank = start(device="cpu").rank
    model = on_this_rank(folder)
    assert share_numbers(model, [rank, rank + 0.5]) == [0, 0.5]
    assert share_numbers(torch.nn.Linear(1, 1), [rank]) == [rank]
    return next_logits(model, [token + rank for token in (1, 2, 3)])


def test_ids_and_decisions_are_those_of_rank_0(tmp_path: Path) -> None:
    model = quiet_llama(CONFIGS["grouped"])
    found = run_ranks(_misled, export(model, tmp_path / "model"), world=2)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], next_logits(model, [1, 2, 3]), rtol=0, atol=1e-10)


def _drawn_differently(folder: str) -> list[list[int]]:
    """On a rank: sample with random numbers of its own, as rounding may make it."""
    settings = replace(SAMPLED, seed=5 + start(device="cpu").rank)
    return decoded(on_this_rank(folder), settings, PROMPTS[:2])


def test_ranks_whose_draws_differ_decode_what_rank_0_draws(folders: dict[str, str]) -> None:
    expected = decoded(
        load_pretrained(folders["grouped"], dtype=torch.float64), SAMPLED, PROMPTS[:2]
    )
    assert run_ranks(_drawn_differently, folders["grouped"], world=2) == [expected] * 2


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "possible"),
    [(4, 2, 3, "1, 2, 4"), (9, 3, 2, "1, 3, 9"), (12, 4, 6, "1, 2, 4, 12"), (4, 4, 8, "1, 2, 4")],
)
def test_ranks_that_do_not_divide_the_heads_are_refused(
    heads: int, kv_heads: int, ranks: int, possible: str
) -> None:
    config = tiny_config(hidden_size=72, num_attention_heads=heads, num_key_value_heads=kv_heads)
    message = f"{ranks} ranks cannot share {heads} query and {kv_heads} .* start {possible} ranks"
    with pytest.raises(ValueError, match=message):
        local_config(config, ranks)


def test_ranks_that_do_not_divide_the_heads_stop_before_any_weight_is_read(tmp_path: Path) -> None:
    folder = export(quiet_llama(CONFIGS["grouped"]), tmp_path / "model")
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(RankError, match="3 ranks cannot share 4 query and 2 key-value heads"):
        run_ranks(_logits, folder, world=3)


CONFIG: LlamaConfig = tiny_config(num_hidden_layers=5, vocab_size=300)


@pytest.fixture(scope="module", params=["fsdp", "zero"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run's folder: shards of FSDP2 by two ranks, or of ZeRO-3 by four."""
    folder, zero = tmp_path_factory.mktemp(request.param), request.param == "zero"
    arguments = (str(folder), make_tokenizer(folder / "tokenizer"), CONFIG, zero)
    run_ranks(train_and_save, *arguments, world=4 if zero else 2)
    return str(folder)


def _from_run(run: str, split: str) -> list[list[int]]:
    ranks = Ranks(start(device="cpu"), split)  # type: ignore[arg-type]
    model = load(run, dtype=torch.float64, device="cpu", ranks=ranks).model
    return alone(model, GREEDY, PROMPTS) + alone(model, SAMPLED, PROMPTS)


@pytest.mark.parametrize("split", ["tensor", "data"])
def test_shards_of_other_ranks_become_the_parts_of_these(run: str, split: str) -> None:
    model = load(run, dtype=torch.float64, device="cpu").model
    expected = alone(model, GREEDY, PROMPTS) + alone(model, SAMPLED, PROMPTS)
    assert run_ranks(_from_run, run, split, world=2) == [expected] * 2
