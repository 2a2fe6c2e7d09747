import pytest
import torch

from models.plan import Selection
from models.tokens import make_tokens
from tests.tiny import tiny_config


def test_a_document_sees_itself_up_to_the_present():
    documents = torch.tensor([[0, 0, 1, 1]])
    mask = make_tokens(tiny_config(), torch.arange(4)[None], documents=documents).mask
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


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
    assert torch.equal(cut.mask, expected.mask)


def test_selecting_from_a_cached_batch_is_refused():
    class Empty:
        def append(self, layer, keys, values):
            return keys, values

    tokens = make_tokens(tiny_config(), torch.arange(4)[None], cache=Empty())
    with pytest.raises(ValueError, match="cannot use a KV cache"):
        tokens.take(Selection(rows=torch.tensor([0])))
