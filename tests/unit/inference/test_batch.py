import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from inference.batch import BatchSettings, decode_batch, generate_batch
from inference.early_exit import early_exit
from inference.generate import autoregressive
from inference.generation import Generation, Round, Settings
from inference.sample import SamplingConfig
from inference.self_speculative import self_speculative
from models.config import LlamaConfig
from models.llama import Llama
from models.plan import full
from tests.tiny import VARIANTS, tiny_config

Quiet = Callable[..., Llama]
PLAIN = BatchSettings(rows=3)
WARM = SamplingConfig(temperature=1.2, top_k=40, top_p=0.95)


def _drafting(rows: int = 3, exit_layer: int = 2, drafts: int = 3) -> BatchSettings:
    return BatchSettings(rows=rows, exit_layer=exit_layer, num_speculations=drafts)


def _prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(96) for _ in range(source.randint(1, longest))] for _ in range(count)]


def _together(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    batch: BatchSettings,
    settings: Settings,
    seeds: Sequence[int] | None = None,
) -> list[Generation]:
    rounds: list[list[Round]] = [[] for _ in prompts]
    for index, each in decode_batch(model, prompts, batch=batch, settings=settings, seeds=seeds):
        rounds[index].append(each)
    return [Generation(tuple(each)) for each in rounds]


def _ids(generations: Sequence[Generation]) -> list[list[int]]:
    return [each.token_ids for each in generations]


def _one_by_one(
    model: Llama, prompts: Sequence[Sequence[int]], settings: Settings
) -> list[list[int]]:
    plan = full(model.config.num_hidden_layers)
    return [
        Generation(tuple(autoregressive(model, each, plan=plan, settings=settings))).token_ids
        for each in prompts
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("quiet", [1.0, 0.1], ids=["random", "quiet"])
def test_greedy_tokens_are_those_of_each_prompt_alone(
    quiet_llama: Quiet, rows: int, quiet: float
) -> None:
    model, prompts, settings = quiet_llama(quiet), _prompts(7), Settings(max_new_tokens=8)
    expected = _one_by_one(model, prompts, settings)
    assert _ids(_together(model, prompts, BatchSettings(rows=rows), settings)) == expected
    for exit_layer, drafts in ((1, 1), (1, 5), (3, 2)):
        batch = _drafting(rows, exit_layer, drafts)
        assert _ids(_together(model, prompts, batch, settings)) == expected, batch


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_of_the_model_is_lossless(quiet_llama: Quiet, config: LlamaConfig) -> None:
    model, settings = quiet_llama(0.2, config=config, seed=1), Settings(max_new_tokens=9)
    prompts = _prompts(5, seed=1)
    expected = _one_by_one(model, prompts, settings)
    for exit_layer in {1, config.num_hidden_layers - 1}:
        batch = _drafting(4, exit_layer, 4)
        assert _ids(_together(model, prompts, batch, settings)) == expected


@pytest.mark.parametrize("batch", [PLAIN, _drafting(), _drafting(2, 1, 6)], ids=repr)
def test_an_end_of_sequence_anywhere_ends_its_row_only(
    quiet_llama: Quiet, batch: BatchSettings
) -> None:
    model, prompts = quiet_llama(0.1), _prompts(4, seed=2)
    everything = _one_by_one(model, prompts, Settings(max_new_tokens=8))
    lengths = set[int]()
    for tokens in everything[:3]:
        for late, early in zip(tokens[1::2], tokens[::2], strict=True):
            settings = Settings(max_new_tokens=8, eos_ids=frozenset({late, early}))
            got = _together(model, prompts, batch, settings)
            assert _ids(got) == _one_by_one(model, prompts, settings)
            lengths |= {len(each.token_ids) for each in got}
    assert len(lengths) > 4


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_never_more_than_was_asked_for(quiet_llama: Quiet, count: int) -> None:
    prompts, settings = _prompts(5, seed=3), Settings(max_new_tokens=count)
    for quiet in (0.0, 0.1, 1.0):
        model = quiet_llama(quiet)
        expected = _one_by_one(model, prompts, settings)
        for batch in (PLAIN, _drafting(2, 1, 1), _drafting(3, 1, 8)):
            assert _ids(_together(model, prompts, batch, settings)) == expected


def test_a_context_may_be_filled_to_its_last_place(quiet_llama: Quiet) -> None:
    model = quiet_llama(0.1, config=tiny_config(max_position_embeddings=32))
    prompts, settings = [[5] * 12, [7], [9] * 3], Settings(max_new_tokens=20)
    expected = _one_by_one(model, prompts, settings)
    for drafts in (1, 5, 9):
        assert _ids(_together(model, prompts, _drafting(3, 1, drafts), settings)) == expected


def test_rows_accept_what_they_would_alone(quiet_llama: Quiet) -> None:
    model, prompts, settings = quiet_llama(0.15), _prompts(6, seed=4), Settings(max_new_tokens=16)
    together = _together(model, prompts, _drafting(3), settings)
    for prompt, generation in zip(prompts, together, strict=True):
        alone = Generation(
            tuple(
                self_speculative(
                    model, prompt, draft=full(2), num_speculations=3, settings=settings
                )
            )
        )
        assert generation.accept_counts == alone.accept_counts
        assert generation.draft_counts == alone.draft_counts
    assert len({tuple(each.accept_counts) for each in together}) > 3


def test_layers_that_do_nothing_above_the_exit_accept_every_draft(quiet_llama: Quiet) -> None:
    model, settings = quiet_llama(0.0, above=2), Settings(max_new_tokens=22)
    for each in _together(model, _prompts(4), _drafting(2, 2, 4), settings):
        assert each.accept_counts == each.draft_counts == [4, 4, 4, 4, 1]


@pytest.mark.parametrize("batch", [PLAIN, _drafting(4, 1, 3), _drafting(2, 3, 5)], ids=repr)
def test_a_sampled_row_depends_on_its_prompt_and_seed_only(
    quiet_llama: Quiet, batch: BatchSettings
) -> None:
    model, prompts, seeds = quiet_llama(0.2), _prompts(7, seed=5), list(range(7))
    settings = Settings(max_new_tokens=13, sampling=WARM, eos_ids=frozenset(range(12)))
    together = _ids(_together(model, prompts, batch, settings, seeds))
    alone = [
        _ids(_together(model, [prompt], batch, settings, [seed]))[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
    turned = _ids(_together(model, prompts[::-1], batch, settings, seeds[::-1]))
    assert turned[::-1] == alone
    assert len(set(map(len, alone))) > 2
    assert _ids(_together(model, prompts, batch, settings, [9] * 7)) != alone


def test_sampling_plainly_draws_what_decoding_one_by_one_draws(quiet_llama: Quiet) -> None:
    model, prompts = quiet_llama(1.0), _prompts(5, seed=6)
    settings = Settings(max_new_tokens=12, sampling=WARM, seed=4)
    expected = _one_by_one(model, prompts, settings)
    assert _ids(_together(model, prompts, PLAIN, settings)) == expected


@pytest.mark.parametrize("sampling", [SamplingConfig(), WARM], ids=["greedy", "sampled"])
def test_an_unverified_exit_is_early_exit(quiet_llama: Quiet, sampling: SamplingConfig) -> None:
    model, prompts = quiet_llama(1.0), _prompts(5, seed=7)
    settings = Settings(max_new_tokens=9, sampling=sampling)
    batch = BatchSettings(rows=2, exit_layer=2, is_verified=False)
    expected = [
        Generation(tuple(early_exit(model, each, exit_layer=2, settings=settings))).token_ids
        for each in prompts
    ]
    assert _ids(_together(model, prompts, batch, settings)) == expected


def _watch(model: Llama) -> list[tuple[int, int, int]]:
    """Record (layer, rows, positions) of every call of a layer from now on."""
    calls: list[tuple[int, int, int]] = []
    for name, layer in model.layers.items():

        def hook(_: nn.Module, arguments: tuple[Any, ...], layer: int = int(name)) -> None:
            calls.append((layer, *arguments[0].shape[:2]))

        layer.register_forward_pre_hook(hook)
    return calls


def test_the_batch_stays_full_while_prompts_wait(quiet_llama: Quiet) -> None:
    model, prompts = quiet_llama(1.0), _prompts(9, seed=8, longest=1)
    tokens = _one_by_one(model, prompts, Settings(max_new_tokens=12))
    common = Counter(token for each in tokens for token in set(each)).most_common(3)
    settings = Settings(max_new_tokens=12, eos_ids=frozenset(token for token, _ in common))
    calls = _watch(model)
    generations = _together(model, prompts, PLAIN, settings)
    lengths = [len(each.token_ids) for each in generations]
    assert len(set(lengths)) > 1
    rows = [rows for layer, rows, _ in calls if layer == 0]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 3
    assert sum(rows) == sum(lengths)


def test_no_layer_runs_twice_on_a_token(quiet_llama: Quiet) -> None:
    model, prompts, settings = quiet_llama(0.1), _prompts(5, seed=9), Settings(max_new_tokens=12)
    calls = _watch(model)
    _together(model, prompts, _drafting(3, 2, 3), settings)
    passes = Counter[int]()
    for layer, rows, positions in calls:
        passes[layer] += rows * positions
    assert len(set(passes.values())) == 1


def test_generations_come_in_the_order_of_the_prompts(quiet_llama: Quiet) -> None:
    model, prompts = quiet_llama(0.1), _prompts(8, seed=10)
    tokens = _one_by_one(model, prompts, Settings(max_new_tokens=10))
    settings = Settings(max_new_tokens=10, eos_ids=frozenset({tokens[1][0], tokens[4][2]}))
    got = generate_batch(model, prompts, batch=_drafting(), settings=settings)
    assert _ids(list(got)) == _one_by_one(model, prompts, settings)


def test_a_generation_is_told_before_later_prompts_are_read(quiet_llama: Quiet) -> None:
    model, prompts = quiet_llama(1.0), _prompts(6, seed=11, longest=1)
    calls = _watch(model)
    settings = Settings(max_new_tokens=5)
    next(generate_batch(model, prompts, batch=BatchSettings(rows=2), settings=settings))
    assert len(calls) == 5 * 4


def test_no_prompts_give_nothing(quiet_llama: Quiet) -> None:
    assert _together(quiet_llama(1.0), [], PLAIN, Settings()) == []


def test_the_caller_is_not_in_inference_mode_between_rounds(quiet_llama: Quiet) -> None:
    rounds = decode_batch(quiet_llama(1.0), _prompts(3), batch=_drafting(), settings=Settings())
    next(rounds)
    assert not torch.is_inference_mode_enabled()


def test_an_error_in_the_middle_leaves_the_model_as_it_was(quiet_llama: Quiet) -> None:
    model, prompts, settings = quiet_llama(0.1), _prompts(4), Settings(max_new_tokens=12)
    expected, calls = _one_by_one(model, prompts, settings), _watch(model)

    def fail(*_: object) -> None:
        if len(calls) > 40:
            raise RuntimeError("out of memory")

    handle = model.layers["3"].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _together(model, prompts, _drafting(), settings)
    handle.remove()
    assert _ids(_together(model, prompts, _drafting(), settings)) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"exit_layer": 2}, "num_speculations must be at least 1 with exit_layer=2, got 0"),
        ({"num_speculations": 3}, "num_speculations=3 would be ignored"),
        (
            {"exit_layer": 2, "num_speculations": 3, "is_verified": False},
            "num_speculations=3 would be ignored",
        ),
        ({"is_verified": False}, "is_verified=False needs an exit_layer"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSettings(**wrong)


@pytest.mark.parametrize(
    ("prompts", "exit_layer", "seeds", "message"),
    [
        ([[1], []], 1, None, "the prompt is empty"),
        ([[1], [96]], 1, None, r"token ids 96\.\.96"),
        ([[1], [2] * 250], 1, None, "250 tokens and max_new_tokens=8"),
        ([[1], [2]], 4, None, r"exit_layer must be in 1\.\.3"),
        ([[1], [2]], 1, [3], "there are 1 seeds for 2 prompts"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_runs(
    quiet_llama: Quiet,
    prompts: list[list[int]],
    exit_layer: int,
    seeds: list[int] | None,
    message: str,
) -> None:
    model = quiet_llama(1.0)
    calls = _watch(model)
    batch, settings = _drafting(2, exit_layer), Settings(max_new_tokens=8)
    with pytest.raises(ValueError, match=message):
        decode_batch(model, prompts, batch=batch, settings=settings, seeds=seeds)
    assert calls == []
