from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
)

from inference.batch import BatchSettings, decode_batch
from inference.early_exit import early_exit
from inference.generate import autoregressive
from inference.generation import Generation, Processor, Settings
from inference.process import make_processing
from inference.sample import SamplingConfig
from inference.self_speculative import self_speculative
from models.llama import Llama
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

Quiet = Callable[..., Llama]
PROMPT = [3, 14, 15, 92, 65, 3, 14]
OTHERS = [[14, 3, 14], [7], [65] * 12]
COUNT = 16


@torch.no_grad()
def _recomputed(
    model: Llama, exit_layer: int, processors: Sequence[Processor], prompt: Sequence[int] = PROMPT
) -> list[int]:
    """Greedy tokens without a cache, every prefix processed anew."""
    ids = list(prompt)
    for _ in range(COUNT):
        tokens = make_tokens(model.config, torch.arange(len(ids))[None])
        h = model(torch.tensor([ids]), tokens, full(exit_layer))[exit_layer]
        scores = model.unembed(h)[:, -1]
        for processor in processors:
            scores = processor(torch.tensor([ids]), scores)
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


def _bad_words(model: Llama) -> NoBadWordsLogitsProcessor:
    """Forbid what would come: a token, a pair, and a pair that begins in the prompt."""
    free = _recomputed(model, 4, [])
    return NoBadWordsLogitsProcessor([[free[5]], free[1:3], [PROMPT[-1], free[0]]])


LISTS: dict[str, Callable[[Llama], list[Processor]]] = {
    "repetition": lambda _: [RepetitionPenaltyLogitsProcessor(1.7)],
    "no pair twice": lambda _: [NoRepeatNGramLogitsProcessor(2)],
    "bad words": lambda model: [_bad_words(model)],
    "all": lambda model: [
        _bad_words(model),
        RepetitionPenaltyLogitsProcessor(1.3),
        NoRepeatNGramLogitsProcessor(1),
        MinPLogitsWarper(0.01),
    ],
}
every_list = pytest.mark.parametrize("make", LISTS.values(), ids=LISTS.keys())


def _plain(model: Llama, settings: Settings, prompt: Sequence[int] = PROMPT) -> list[int]:
    rounds = autoregressive(model, prompt, plan=full(4), settings=settings)
    return Generation(tuple(rounds)).token_ids


def _speculated(model: Llama, exit_layer: int, drafts: int, settings: Settings) -> Generation:
    rounds = self_speculative(
        model, PROMPT, draft=full(exit_layer), num_speculations=drafts, settings=settings
    )
    return Generation(tuple(rounds))


def _batched(
    model: Llama, batch: BatchSettings, settings: Settings, prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in prompts]
    for index, each in decode_batch(model, prompts, batch=batch, settings=settings):
        ids[index] += each.tokens
    return ids


@every_list
@pytest.mark.parametrize("quiet", [1.0, 0.1], ids=["random", "quiet"])
def test_every_prefix_is_processed_whoever_decodes(
    quiet_llama: Quiet, make: Callable[[Llama], list[Processor]], quiet: float
) -> None:
    model = quiet_llama(quiet)
    processors = LogitsProcessorList(make(model))
    settings = Settings(max_new_tokens=COUNT, processors=processors)
    expected = _recomputed(model, 4, processors)
    assert _plain(model, settings) == expected
    accepted = 0
    for exit_layer, drafts in ((1, 1), (1, 6), (2, 3), (3, 2)):
        generation = _speculated(model, exit_layer, drafts, settings)
        assert generation.token_ids == expected, (exit_layer, drafts)
        accepted += sum(generation.accept_counts)
    assert accepted


@every_list
def test_each_list_changes_what_is_decoded(
    quiet_llama: Quiet, make: Callable[[Llama], list[Processor]]
) -> None:
    model = quiet_llama(0.1)
    assert _recomputed(model, 4, make(model)) != _recomputed(model, 4, [])


@every_list
def test_rows_of_a_batch_are_processed_as_they_would_be_alone(
    quiet_llama: Quiet, make: Callable[[Llama], list[Processor]]
) -> None:
    model, prompts = quiet_llama(0.1), [*OTHERS, PROMPT]
    settings = Settings(max_new_tokens=COUNT, processors=make(model))
    expected = [_plain(model, settings, prompt) for prompt in prompts]
    for batch in (
        BatchSettings(rows=3),
        BatchSettings(rows=3, exit_layer=2, num_speculations=4),
        BatchSettings(rows=2, exit_layer=1, num_speculations=1),
    ):
        assert _batched(model, batch, settings, prompts) == expected, batch


@every_list
def test_early_exit_processes_the_exits_logits(
    quiet_llama: Quiet, make: Callable[[Llama], list[Processor]]
) -> None:
    model = quiet_llama(1.0)
    processors = make(model)
    settings = Settings(max_new_tokens=COUNT, processors=processors)
    rounds = early_exit(model, PROMPT, exit_layer=2, settings=settings)
    expected = _recomputed(model, 2, processors)
    assert Generation(tuple(rounds)).token_ids == expected
    batch = BatchSettings(rows=2, exit_layer=2, is_verified=False)
    assert _batched(model, batch, settings, [OTHERS[0], PROMPT])[1] == expected


@pytest.mark.parametrize("drafts", [1, 4])
def test_an_unsure_draft_may_stop_early_under_processors_too(
    quiet_llama: Quiet, drafts: int
) -> None:
    model = quiet_llama(0.1)
    settings = Settings(max_new_tokens=COUNT, processors=[RepetitionPenaltyLogitsProcessor(1.7)])
    rounds = self_speculative(
        model,
        PROMPT,
        draft=full(2),
        num_speculations=drafts,
        draft_confidence=0.3,
        settings=settings,
    )
    assert Generation(tuple(rounds)).token_ids == _plain(model, settings)


class _Watcher:
    """Changes nothing, remembers what it was asked, and fails at call number `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.dtypes: set[torch.dtype] = set()
        self._fail_at = fail_at

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        assert ids.shape[0] == scores.shape[0] == 1
        assert (ids.dtype, scores.shape[1]) == (torch.long, 96)
        if len(self.asked) == self._fail_at:
            raise RuntimeError("no such word")
        self.asked.append(tuple(ids[0].tolist()))
        self.dtypes.add(scores.dtype)
        return scores


def test_drafts_are_part_of_the_prefix_they_make(quiet_llama: Quiet) -> None:
    model, watcher = quiet_llama(0.1), _Watcher()
    settings = Settings(max_new_tokens=COUNT, processors=[watcher])
    generation = _speculated(model, 2, 3, settings)
    text = [*PROMPT, *generation.token_ids]
    prefixes = {tuple(text[:end]) for end in range(len(PROMPT), len(text))}
    assert prefixes < set(watcher.asked)  # and rejected drafts
    assert len(watcher.asked) == sum(2 * each.drafted + 1 for each in generation.rounds)


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_batch_asks_no_more_than_its_rows_need(quiet_llama: Quiet, drafts: int) -> None:
    model, prompts = quiet_llama(0.1), [*OTHERS, PROMPT]
    batch = BatchSettings(rows=3, exit_layer=2 if drafts else None, num_speculations=drafts)
    together, alone = _Watcher(), _Watcher()
    for watcher, groups in ((together, [prompts]), (alone, [[each] for each in prompts])):
        settings = Settings(max_new_tokens=9, processors=[watcher])
        for group in groups:
            _batched(model, batch, settings, group)
    assert sorted(together.asked) == sorted(alone.asked)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_scores_are_handed_over_in_full_precision(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    model, watcher = tiny_llama(dtype=dtype), _Watcher()
    settings = Settings(max_new_tokens=4, processors=[watcher])
    _plain(model, settings)
    _speculated(model, 2, 2, settings)
    _batched(model, BatchSettings(), settings, OTHERS)
    assert watcher.dtypes == {expected}


def _decoders(model: Llama) -> list[Callable[[Settings], list[int]]]:
    batch = BatchSettings(exit_layer=2, num_speculations=3)
    return [
        lambda settings: _plain(model, settings),
        lambda settings: _speculated(model, 2, 3, settings).token_ids,
        lambda settings: _batched(model, batch, settings, [*OTHERS, PROMPT])[-1],
    ]


@pytest.mark.parametrize("way", range(3), ids=["autoregressive", "self-speculative", "batch"])
def test_a_processor_that_fails_leaves_later_generations_as_they_were(
    quiet_llama: Quiet, way: int
) -> None:
    model = quiet_llama(0.1)
    decode, free = _decoders(model)[way], Settings(max_new_tokens=COUNT)
    expected, weights = decode(free), {k: v.clone() for k, v in model.state_dict().items()}
    for fail_at in (0, 1, 6):
        with pytest.raises(RuntimeError, match="no such word"):
            decode(Settings(max_new_tokens=COUNT, processors=[_Watcher(fail_at)]))
        assert not torch.is_inference_mode_enabled()
        assert decode(free) == expected
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("eos", [1, 2], ids=["one end", "two ends"])
def test_no_end_of_sequence_comes_before_its_time(quiet_llama: Quiet, eos: int) -> None:
    model = quiet_llama(0.1)
    free = _plain(model, Settings(max_new_tokens=COUNT))
    ends = frozenset(free[:eos])
    for least in (0, 1, 2, 7, COUNT):
        settings = Settings(max_new_tokens=COUNT, min_new_tokens=least, eos_ids=ends)
        expected = _plain(model, settings)
        assert len(expected) >= max(least, 1)
        assert not ends & set(expected[:least])
        assert (expected == free[:1]) == (least == 0)
        for decode in _decoders(model)[1:]:
            assert decode(settings) == expected, least


@pytest.mark.parametrize("least", [-1, 9])
def test_a_least_length_beyond_the_most_is_refused(least: int) -> None:
    with pytest.raises(ValueError, match=rf"min_new_tokens must be in 0\.\.8.* got {least}"):
        Settings(max_new_tokens=8, min_new_tokens=least)


def test_nothing_is_kept_when_nothing_is_processed() -> None:
    config, device = tiny_config(), torch.device("cpu")
    for settings in (Settings(), Settings(min_new_tokens=5), Settings(eos_ids=frozenset({3}))):
        assert make_processing(config, settings, prompt_length=4, device=device) is None


@pytest.mark.parametrize("drafts", [0, 2])
def test_sampled_rows_do_not_depend_on_their_company_under_processors(
    quiet_llama: Quiet, drafts: int
) -> None:
    model, prompts = quiet_llama(0.2), [*OTHERS, PROMPT]
    batch = BatchSettings(rows=2, exit_layer=1 if drafts else None, num_speculations=drafts)
    warm = [TemperatureLogitsWarper(1.4), MinPLogitsWarper(0.05), NoRepeatNGramLogitsProcessor(2)]
    settings = Settings(
        max_new_tokens=12, processors=warm, sampling=SamplingConfig(temperature=1.0), seed=3
    )
    alone = [_batched(model, batch, settings, [prompt])[0] for prompt in prompts]
    assert _batched(model, batch, settings, prompts) == alone
    if not drafts:
        assert alone == [_plain(model, settings, prompt) for prompt in prompts]
