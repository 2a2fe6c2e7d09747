from dataclasses import replace

import pytest
import torch

from models.documents import document_mask
from models.plan import Selection
from models.tokens import make_tokens
from tests.tiny import tiny_config


class Empty:
    def append(self, layer, keys, values):
        return keys, values


def test_positions_shared_by_all_rows_stay_shared_when_rows_are_cut():
    tokens = make_tokens(tiny_config(), torch.arange(4)[None])
    assert tokens.take(Selection(rows=torch.tensor([0, 2]))).cos is tokens.cos


def test_side_data_is_cut_to_rows_first_and_then_to_their_tokens():
    positions = torch.arange(12).view(3, 4) * 7
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2]])
    tokens = make_tokens(tiny_config(), positions, documents=documents)
    rows, picks = torch.tensor([1, 2]), torch.tensor([[0, 1, 3], [1, 2, 3]])
    cut = tokens.take(Selection(rows=rows, tokens=picks))
    expected = make_tokens(
        tiny_config(),
        positions[rows].gather(1, picks),
        documents=documents[rows].gather(1, picks),
    )
    assert torch.equal(cut.cos, expected.cos)
    assert torch.equal(cut.sin, expected.sin)
    assert torch.equal(cut.documents.ids, expected.documents.ids)


def test_a_mask_is_cut_as_the_documents_are_that_it_stands_for():
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2]])
    tokens = make_tokens(tiny_config(), torch.arange(4)[None])
    masked = replace(tokens, mask=document_mask(documents))
    rows, picks = torch.tensor([1, 2]), torch.tensor([[0, 1, 3], [1, 2, 3]])
    cut = masked.take(Selection(rows=rows, tokens=picks))
    assert torch.equal(cut.mask, document_mask(documents[rows].gather(1, picks)))


def test_other_accelerators_get_a_mask():
    elsewhere = torch.zeros(2, 4, dtype=torch.long, device="meta")
    tokens = make_tokens(tiny_config(), torch.arange(4)[None].to("meta"), documents=elsewhere)
    assert tokens.documents is None
    assert tokens.mask.shape == (2, 1, 4, 4)


def test_documents_and_a_cache_are_refused_together():
    documents = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="documents and a cache: a cache holds one document a row"):
        make_tokens(tiny_config(), torch.arange(4)[None], documents=documents, cache=Empty())


def test_selecting_from_a_cached_batch_is_refused():
    tokens = make_tokens(tiny_config(), torch.arange(4)[None], cache=Empty())
    with pytest.raises(ValueError, match="cannot use a KV cache"):
        tokens.take(Selection(rows=torch.tensor([0])))
