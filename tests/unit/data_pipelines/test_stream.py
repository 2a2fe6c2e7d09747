import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.config import DataConfig, HubSource, SourceConfig, StreamingConfig
from data_pipelines.mixture import MixtureLoader
from data_pipelines.prepare_sources import prepare_data
from data_pipelines.stream import Lane, State, read_state, sequences
from data_pipelines.stream_source import open_stream
from data_pipelines.tokenize import load_tokenizer
from tests.streams import data_config, opened, streamed, write_documents, write_questions

SEQ_LEN = 32


def lane(folder: Path, number: int = 0, of: int = 1, at_once: int = 8) -> Lane:
    def encode(text: str) -> list[int]:
        return [*text.encode(), 0]

    source = open_stream(streamed(folder), "web")
    return Lane(source, encode, number, of, seed=5, at_once=at_once, block=2)


def names(lane: Lane, blocks: int) -> list[str]:
    """The first words of the documents of some blocks."""
    found = []
    for block in itertools.islice(lane.blocks(State().place), blocks):
        text = bytes(block.ids.tolist()).decode()
        found += re.findall(r"web \d+ \d+(?=:)", text)
    return found


@pytest.mark.parametrize(("files", "lanes"), [(1, 1), (1, 4), (3, 4), (4, 4), (9, 4), (2, 3)])
def test_the_lanes_deal_out_every_document_once_in_an_epoch(
    tmp_path: Path, files: int, lanes: int
) -> None:
    folder = write_documents(tmp_path, files=files, rows=30)
    found: list[str] = []
    for number in range(lanes):
        blocks = lane(folder, number, lanes).blocks(State().place)
        epoch = itertools.takewhile(lambda block: block.place.epoch == 0, blocks)
        text = b"".join(bytes(block.ids.tolist()) for block in epoch).decode()
        found += re.findall(r"web \d+ \d+(?=:)", text)
    assert sorted(found) == sorted(f"web {f} {r}" for f in range(files) for r in range(30))


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    found = names(lane(write_documents(tmp_path, files=3, rows=16)), blocks=48)
    first, second = found[:48], found[48:]
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("padding", [None, 0])
def test_a_lane_goes_on_from_any_state_as_if_it_had_not_stopped(
    tmp_path: Path, padding: int | None
) -> None:
    one = lane(write_documents(tmp_path, files=2, rows=11), at_once=3)
    length = SEQ_LEN if padding is None else 128
    whole = list(itertools.islice(sequences(one, State(), length, padding, None), 60))
    assert whole[-1].after.place.epoch >= 1
    for begin in range(0, 55, 3):
        state = read_state(json.loads(json.dumps(whole[begin].after.as_json())))
        for ours, theirs in zip(
            itertools.islice(sequences(one, state, length, padding, None), 5),
            whole[begin + 1 : begin + 6],
            strict=True,
        ):
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.documents, theirs.documents)
            assert ours.after == theirs.after


def test_text_is_cut_so_that_every_token_is_a_label_once(tmp_path: Path) -> None:
    one = lane(write_documents(tmp_path, files=2, rows=20))
    cut = list(itertools.islice(sequences(one, State(), SEQ_LEN, None, None), 100))
    stream = np.concatenate([block.ids for block in itertools.islice(one.blocks(State().place), 9)])
    for number, sequence in enumerate(cut):
        begin = number * SEQ_LEN
        if begin + SEQ_LEN < len(stream):
            assert np.array_equal(sequence.ids, stream[begin : begin + SEQ_LEN + 1])
        ends = sequence.ids[:-1] == 0
        assert np.array_equal(np.diff(sequence.documents) == 1, ends)
        assert sequence.documents[0] == 0


def test_a_sequence_may_be_longer_than_all_that_is_read_at_once(tmp_path: Path) -> None:
    one = lane(write_documents(tmp_path, files=2, rows=4), at_once=1)
    first, second = itertools.islice(sequences(one, State(), 2000, None, None), 2)
    resumed = next(sequences(one, first.after, 2000, None, None))
    assert np.array_equal(resumed.ids, second.ids)


def test_a_lane_without_documents_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = write_documents(tmp_path, files=1, rows=2)
    with pytest.raises(ValueError, match=r"lane 3 of 4 has no document.*lower data.streaming.lane"):
        next(sequences(lane(folder, 3, 4), State(), SEQ_LEN, None, None))


def take(loader: Any, steps: range, ranks: tuple[int, int] = (0, 1)) -> list[Any]:
    rank, world = ranks
    mine = range(rank, loader.num_microbatches, world)
    batches = [loader.microbatch(step, index) for step in steps for index in mine]
    return [[b.ids.tolist(), b.labels.tolist(), b.documents] for b in batches]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_stream_does_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    expected = take(opened(data_config(tmp_path)), range(12))
    streaming = StreamingConfig(shuffle_documents=8, workers=workers)
    assert take(opened(data_config(tmp_path, streaming=streaming)), range(12)) == expected


def test_two_configs_that_differ_in_workers_are_equal(tmp_path: Path) -> None:
    one, two = (data_config(tmp_path, streaming=StreamingConfig(workers=n)) for n in (1, 2))
    assert one == two
    assert one != data_config(tmp_path, streaming=StreamingConfig(lanes=2))


@pytest.mark.parametrize("lanes", [1, 2, None])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_that_one_rank_has(
    tmp_path: Path, lanes: int | None, world: int
) -> None:
    config = data_config(tmp_path, streaming=StreamingConfig(lanes=lanes, workers=0))
    expected = take(opened(config), range(4))
    shares = [take(opened(config), range(4), (rank, world)) for rank in range(world)]
    dealt = [
        shares[i % world][step * (4 // world) + i // world] for step in range(4) for i in range(4)
    ]
    assert dealt == expected


def test_an_earlier_step_can_be_asked_for_again(tmp_path: Path) -> None:
    loader = opened(data_config(tmp_path))
    expected = take(loader, range(9))
    assert take(loader, range(2, 5)) == expected[8:20]


def test_held_out_documents_are_validated_on_and_never_trained_on(tmp_path: Path) -> None:
    config = data_config(tmp_path, valid_fraction=0.3)
    loader = opened(config)
    assert isinstance(loader, MixtureLoader)
    tokenizer = load_tokenizer(prepare_data(config) / "tokenizer")
    seen = Counter(
        name
        for step in range(60)
        for index in range(4)
        for row in loader.microbatch(step, index).ids.tolist()
        for name in re.findall(r"web \d+ \d+(?=:)", tokenizer.decode(row))
    )
    (valid,) = prepare_data(config).parent.glob("*/valid.arrow")
    from data_pipelines.loader import open_split

    held = open_split(valid.parent, "valid")
    rows, _ = held.rows(np.arange(len(held)))
    text = tokenizer.decode(rows[:, :-1].reshape(-1).tolist())
    held_out = set(re.findall(r"web \d+ \d+(?=:)", text))
    assert 15 < len(held_out) < 60
    assert len(seen) > 50
    assert not held_out & set(seen)


@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_other_kinds_of_files_are_streamed_too(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    texts = [f"web 0 {row}: NA, 007\n" for row in range(12)]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": texts}), folder / "a.parquet")
    elif kind == "csv":
        (folder / "a.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    else:
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
    source = open_stream(streamed(folder), "web")
    found = [t for shard in range(source.num_shards) for t in next(source.documents(shard, 0, 64))]
    assert sorted(map(str, found)) == sorted(texts)


def test_a_column_that_is_not_there_and_mixed_kinds_are_named(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "a", files=1, rows=3)
    with pytest.raises(ValueError, match=r"web has no column 'body' .it has text."):
        open_stream(streamed(folder, column="body"), "web")
    (folder / "b.txt").write_text("x")
    with pytest.raises(ValueError, match=r"several kinds .json, text.*pattern"):
        open_stream(streamed(folder), "web")


def test_a_file_that_is_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "a", files=2, rows=3)
    with (folder / "01.jsonl").open("a") as file:
        file.write('{"text": "broken\n')
    source = open_stream(streamed(folder), "web")
    with pytest.raises(ValueError, match=r"^web: \S*01.jsonl, row 4 is not JSON .*: write"):
        list(source.documents(1, 0, 2))


def documents(path: Path, **changes: object) -> list[str | None]:
    source = open_stream(streamed(path, **changes), "web")
    return [t for s in range(source.num_shards) for part in source.documents(s, 0, 2) for t in part]


def test_what_else_a_json_row_holds_does_not_matter(tmp_path: Path) -> None:
    rows = ['{"text": "a \\" b", "x": 1}', "", '{"text": "2020-01-01", "x": "y"}', '{"text": null}']
    (tmp_path / "0.jsonl").write_text("\ufeff" + "\n".join(rows) + "\n")
    (tmp_path / "1.jsonl").write_text('{"y": {}, "text": "c"}')
    assert documents(tmp_path) == ['a " b', None, "2020-01-01", None, "c"]


@pytest.mark.parametrize(
    ("name", "content", "changes", "complaint"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 7}', {}, "row 2: text must be a text, got 7"),
        ("a.jsonl", '{"text": "x"}\n{"t": "x"}', {}, "row 2 has no column 'text': it has t"),
        ("a.jsonl", '{"text": "\\ud800"}', {}, "row 1: text is not Unicode text"),
        ("a.jsonl", "[]", {}, "row 1 is not a JSON object but a list"),
        ("a.tsv", "utterance\tsemantic_parse\nq\n", {"format": "top_v2"}, "is empty, or the row"),
    ],
)
def test_a_row_that_cannot_be_streamed_is_named(
    tmp_path: Path, name: str, content: str, changes: dict[str, object], complaint: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        documents(tmp_path / name, **changes)


def test_a_separator_at_the_end_of_rows_shifts_no_column(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("utterance\tsemantic_parse\ncall Bob\t[IN:CALL ]\t\n")
    (found,) = documents(path, format="top_v2")
    assert json.loads(str(found)) == {"prompt": "call Bob", "response": "\n[IN:CALL ]"}
    assert documents(path) == [path.read_text()]  # plain text, as where it is prepared


def test_messages_may_have_keys_of_their_own(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "name": "z"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (found,) = documents(tmp_path, format="chat")
    assert [turn["content"] for turn in json.loads(str(found))["messages"]] == ["q", "a"]


def test_rows_of_the_hub_are_what_they_hold_whatever_datasets_takes_them_for(
    tmp_path: Path,
) -> None:
    turns = [{"role": "user", "content": "q", "name": "z"}, {"role": "assistant", "content": "a"}]
    for name, rows in {"chat": [{"messages": turns}], "text": [{"text": "a"}, {"text": 7}]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    chat = SourceConfig(hub=HubSource(name=f"{tmp_path}/chat", format="chat", streaming=True))
    ((sample,),) = open_stream(chat, "hub").documents(0, 0, 8)
    assert [turn["content"] for turn in json.loads(str(sample))["messages"]] == ["q", "a"]
    text = SourceConfig(hub=HubSource(name=f"{tmp_path}/text", streaming=True))
    with pytest.raises(ValueError, match="row 2: text must be a text, got 7"):
        list(open_stream(text, "hub").documents(0, 0, 8))


def test_samples_are_streamed_as_they_are_prepared(tmp_path: Path) -> None:
    maths = write_questions(tmp_path / "maths.jsonl", rows=80)
    config: DataConfig = data_config(
        tmp_path, source=streamed(maths, format="gsm8k"), seq_len=96, valid_fraction=0.2
    )
    loader = opened(config, num_microbatches=2)
    tokenizer = load_tokenizer(prepare_data(config) / "tokenizer")
    batch = loader.microbatch(0, 0)
    row, labels = batch.ids[0], batch.labels[0]
    learnt = tokenizer.decode(labels[labels >= 0].tolist())
    assert re.match(r" (\d+)\+\1=\d+\n#### \d+", learnt)
    assert "What" not in learnt
    assert tokenizer.decode(row.tolist()).startswith("Question: What is ")
