from pathlib import Path

import numpy as np
import pytest

from data_pipelines.loader import open_split
from data_pipelines.pack import Int32s, SplitSize, pack, write_split


def stream(lengths: list[int]) -> tuple[Int32s, Int32s]:
    return np.arange(sum(lengths), dtype=np.int32), np.asarray(lengths, np.int32)


def batches(*groups: list[int]) -> list[tuple[Int32s, Int32s]]:
    """Batches of documents whose ids count up through all of them."""
    offset, found = 0, []
    for lengths in groups:
        ids, sizes = stream(lengths)
        found.append((ids + np.int32(offset), sizes))
        offset += len(ids)
    return found


def joined(groups: list[list[int]], seq_len: int) -> tuple[Int32s, Int32s]:
    sequences = list(pack(batches(*groups), seq_len))
    ids = np.concatenate([s.ids for s in sequences])
    return ids, np.concatenate([s.documents for s in sequences])


def test_every_token_is_an_input_once_and_the_next_one_is_its_label() -> None:
    ids, _ = joined([[3, 5, 2], [7], [4, 1]], seq_len=4)
    assert ids[:, :-1].reshape(-1).tolist() == list(range(20))
    assert ids[:, 1:].reshape(-1).tolist() == list(range(1, 21))


def test_document_ids_count_on_over_batches_and_sequences() -> None:
    _, documents = joined([[3, 5, 2], [7], [4, 1]], seq_len=4)
    expected = np.repeat(np.arange(6), [3, 5, 2, 7, 4, 1])
    assert documents[:, :-1].reshape(-1).tolist() == expected[:20].tolist()
    assert documents[:, -1].tolist() == expected[4:21:4].tolist()


def test_how_documents_arrive_does_not_change_the_sequences() -> None:
    lengths = [3, 5, 2, 7, 4, 1, 30, 1, 1]
    whole, one_by_one = joined([lengths], 4), joined([[n] for n in lengths], 4)
    np.testing.assert_array_equal(whole[0], one_by_one[0])
    np.testing.assert_array_equal(whole[1], one_by_one[1])


@pytest.mark.parametrize(("tokens", "sequences"), [(4, 0), (5, 1), (8, 1), (9, 2)])
def test_a_sequence_needs_one_token_more_than_it_has_positions(
    tmp_path: Path, tokens: int, sequences: int
) -> None:
    size = write_split(tmp_path / "train.arrow", batches([tokens]), 4)
    assert size == SplitSize(documents=1, tokens=tokens, sequences=sequences)
    assert len(open_split(tmp_path, "train")) == sequences


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    groups = [[3, 5, 2], [7], [4, 1], [25]]
    write_split(tmp_path / "train.arrow", batches(*groups), 4)
    split = open_split(tmp_path, "train")
    ids, documents = split.rows(np.arange(len(split)))
    expected = joined(groups, 4)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(documents, expected[1])
