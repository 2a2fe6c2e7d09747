from pathlib import Path

import numpy as np
import pytest

from benchmarks.prompts import held_out_prompts
from data_pipelines.loader import Split, open_split
from data_pipelines.pack import write_split


def split_of(folder: Path, documents: list[list[int]], seq_len: int = 8) -> Split:
    ids = np.concatenate([np.asarray(document, np.int32) for document in documents])
    lengths = np.asarray([len(document) for document in documents], np.int32)
    write_split(folder / "valid.arrow", [(ids, lengths)], seq_len)
    return open_split(folder, "valid")


def test_prompts_are_the_beginnings_of_documents_across_sequence_borders(tmp_path: Path) -> None:
    documents = [list(range(100 * d, 100 * d + 13)) for d in range(1, 8)]
    prompts = held_out_prompts(split_of(tmp_path, documents), count=6, length=5)
    assert prompts == [document[:5] for document in documents[:6]]


def test_documents_that_end_within_their_prompt_are_left_out(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [11, 12, 13, 14], [21, 22, 23], [31, 32, 33, 34], [41] * 9]
    prompts = held_out_prompts(split_of(tmp_path, documents, seq_len=4), count=2, length=3)
    assert prompts == [[11, 12, 13], [31, 32, 33]]


def test_few_prompts_are_spread_over_the_whole_split(tmp_path: Path) -> None:
    documents = [[d] * 8 for d in range(21)]  # the last one fills no sequence
    prompts = held_out_prompts(split_of(tmp_path, documents), count=4, length=2)
    assert prompts == [[0, 0], [5, 5], [10, 10], [15, 15]]


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    documents = [[d] * 8 for d in range(3)]
    with pytest.raises(ValueError, match=r"2 documents of more than 4.*data\.valid_fraction"):
        held_out_prompts(split_of(tmp_path, documents), count=3, length=4)
