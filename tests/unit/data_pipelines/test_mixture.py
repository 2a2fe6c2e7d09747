import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.config import DataConfig, MixedSource
from data_pipelines.loader import Batch
from data_pipelines.mixture import MixtureLoader, merge_states
from data_pipelines.open import describe_sources, interleave, open_split, open_train, open_valid
from data_pipelines.prepare_sources import prepare_data, source_folders
from tests.streams import data_config, mixed_config, opened


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return mixed_config(tmp_path_factory.mktemp("mixed"))


def mixture(config: DataConfig, **changes: Any) -> MixtureLoader:
    loader = opened(config, **changes)
    assert isinstance(loader, MixtureLoader)
    return loader


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)


def steps(loader: MixtureLoader, which: range) -> list[Batch]:
    indices = range(loader.num_microbatches)
    return [loader.microbatch(step, index) for step in which for index in indices]


def test_the_sources_have_their_shares_and_the_rows_are_theirs(config: DataConfig) -> None:
    loader = mixture(config)
    chosen = Counter(
        loader.sources[number].name
        for step in range(100)
        for index in range(4)
        for number in loader.sources_of(step, index)
    )
    assert chosen["web"] == pytest.approx(400, abs=4)
    assert chosen["books"] == pytest.approx(240, abs=4)
    assert chosen["maths"] == pytest.approx(160, abs=4)
    for batch, numbers in (
        (loader.microbatch(step, 1), loader.sources_of(step, 1)) for step in range(10)
    ):
        for labels, number in zip(batch.labels, numbers, strict=True):
            is_samples = loader.sources[number].name == "maths"
            assert bool((labels == -100).any()) == is_samples


def test_a_prepared_source_is_seen_once_an_epoch_each_in_another_order(config: DataConfig) -> None:
    loader = mixture(config)
    number = next(i for i, source in enumerate(loader.sources) if source.name == "maths")
    rows = loader.sources[number].rows
    assert rows is not None
    ids, _ = rows.rows(np.arange(len(rows)))
    known = {tuple(row): i for i, row in enumerate(ids.tolist())}
    seen = []
    for step in range(80):
        for index in range(4):
            found, _ = loader.rows(step, index)
            for row, source in zip(found, loader.sources_of(step, index), strict=True):
                if source == number:
                    seen.append(known[tuple(row.tolist())])
    size = len(rows)
    assert len(seen) > 2 * size
    assert sorted(seen[:size]) == sorted(seen[size : 2 * size]) == list(range(size))
    assert seen[:size] != seen[size : 2 * size]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_goes_on_from_its_state_on_any_number_of_ranks(
    config: DataConfig, world: int
) -> None:
    whole = steps(mixture(config), range(14))
    ranks = [mixture(config) for _ in range(world)]
    for step in range(9):  # two more than are trained on: what is made ahead
        for index in range(4):
            ranks[index % world].microbatch(step, index)
    state = json.loads(json.dumps(merge_states([rank.state(7) for rank in ranks])))
    assert len(json.dumps(state)) < 400
    for resumed_world in (1, 2):
        resumed = [mixture(config, state=state) for _ in range(resumed_world)]
        for step in range(7, 14):
            for index in range(4):
                batch = resumed[index % resumed_world].microbatch(step, index)
                assert same(batch, whole[step * 4 + index])


def test_a_resumed_run_may_jump_over_steps(config: DataConfig) -> None:
    loader = mixture(config)
    whole = steps(loader, range(12))
    state = loader.state(5)
    jumped = mixture(config, state=state)
    assert same(jumped.microbatch(10, 2), whole[42])
    assert same(jumped.microbatch(6, 2), whole[26])
    assert same(jumped.microbatch(1, 2), whole[6])


def test_the_state_of_a_step_that_is_not_reached_is_read_ahead(config: DataConfig) -> None:
    loader = mixture(config)
    steps(loader, range(3))
    assert mixture(config, state=loader.state(3)).state(3) == {}
    assert same(mixture(config, state=loader.state(3)).microbatch(3, 0), loader.microbatch(3, 0))


def test_a_state_of_other_lanes_is_refused(config: DataConfig) -> None:
    loader = mixture(config)
    loader.microbatch(0, 0)
    with pytest.raises(ValueError, match=r"lanes is 2, but the checkpoint's streams have 4"):
        mixture(config, num_microbatches=2, state=loader.state(0))


def test_a_mixture_of_prepared_sources_has_nothing_to_save(config: DataConfig) -> None:
    assert config.mixture is not None
    prepared = {name: each for name, each in config.mixture.items() if name != "web"}
    loader = mixture(replace(config, mixture=prepared, streaming=None))
    loader.microbatch(3, 0)
    assert loader.state(3) == {}


def test_the_order_in_the_file_does_not_matter(config: DataConfig) -> None:
    assert config.mixture is not None
    turned = replace(config, mixture=dict(reversed(config.mixture.items())))
    assert prepare_data(turned) == prepare_data(config)
    assert all(map(same, steps(mixture(turned), range(3)), steps(mixture(config), range(3))))


def test_other_weights_reuse_what_is_prepared_with_a_given_tokenizer(config: DataConfig) -> None:
    assert config.mixture is not None
    tokenizer = replace(
        config.tokenizer, sentencepiece=None, path=str(prepare_data(config) / "tokenizer")
    )
    given = replace(config, tokenizer=tokenizer)
    heavier = {
        name: MixedSource(weight=each.weight + 1, files=each.files)
        for name, each in config.mixture.items()
    }
    assert prepare_data(given) == prepare_data(replace(given, mixture=heavier))
    assert source_folders(prepare_data(given)) == source_folders(prepare_data(config))


def test_validation_alternates_by_the_shares_and_has_every_sequence_once(
    config: DataConfig,
) -> None:
    folder = prepare_data(config)
    splits = [open_split(path, "valid") for path in source_folders(folder).values()]
    both = interleave(splits, list(config.shares.values()))
    assert len(both) == sum(len(split) for split in splits)
    assert len({tuple(pair) for pair in both.order.tolist()}) == len(both)
    first = Counter(both.order[:10, 0].tolist())
    assert first[2] >= first[0] >= first[1] >= 1
    valid = open_valid(config, folder, seed=0, micro_batch_size=4)
    rows = torch.cat([valid.sequential(i).ids for i in range(valid.num_sequential)])
    assert len(rows) == len(both)


def test_a_line_for_each_source_says_its_share_and_its_epochs(config: DataConfig) -> None:
    books, maths, web = describe_sources(mixture(config), steps=100)
    assert books.startswith("source books: 30.00% of the sequences, 24")
    assert maths.startswith("source maths: 20.00% of the sequences, 159 in 100 steps, 2.9")
    assert " epochs of " in maths
    assert web.endswith("streamed in 4 lanes")


def test_a_lone_prepared_source_is_loaded_as_before(tmp_path: Path) -> None:
    streamed = data_config(tmp_path)
    assert streamed.source is not None
    assert streamed.source.files is not None
    files = replace(streamed.source.files, streaming=False)
    plain = replace(streamed, source=replace(streamed.source, files=files), streaming=None)
    loader = open_train(plain, prepare_data(plain), seed=0, micro_batch_size=2, num_microbatches=2)
    assert loader.state(5) == {}
    assert describe_sources(loader, 5) == []
