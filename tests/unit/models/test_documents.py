import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from models.documents import document_blocks, document_mask, make_documents


def random_ids(rows: int, length: int, most: int) -> Tensor:
    return torch.randint(0, most, (rows, length)).sort(dim=1).values


def listed(counts: Tensor, indices: Tensor) -> list[set[int]]:
    """The blocks that each block visits, as sets."""
    rows = zip(counts.flatten().tolist(), indices.flatten(0, -2).tolist(), strict=True)
    return [set(row[:count]) for count, row in rows]


def test_a_position_sees_its_own_document_up_to_the_present() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


@pytest.mark.parametrize(
    ("rows", "length", "most"),
    [(2, 700, 5), (1, 128, 3), (3, 1024, 1), (2, 1000, 300), (2, 37, 4), (2, 385, 2)],
)
def test_blocks_are_those_that_flex_attention_finds_itself(
    rows: int, length: int, most: int
) -> None:
    ours = document_blocks(random_ids(rows, length, most))
    theirs = create_block_mask(ours.mask_mod, rows, None, length, length, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        found, expected = (
            listed(getattr(mask, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices"))
            for mask in (ours, theirs)
        )
        assert found == expected, kind


def test_blocks_know_each_pair_of_positions() -> None:
    ids = random_ids(2, 30, 4)
    sees = document_blocks(ids).mask_mod
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(30), torch.arange(30), indexing="ij")
    assert torch.equal(sees(b, torch.zeros_like(b), q, k), document_mask(ids)[:, 0])


def test_blocks_are_made_where_there_is_an_accelerator_only() -> None:
    ids = random_ids(2, 300, 3)
    assert make_documents(ids).blocks is None
    assert make_documents(ids.to("meta")).blocks is not None


def test_rows_and_positions_are_cut_from_ids_and_blocks_alike() -> None:
    ids, rows = random_ids(4, 300, 5), torch.tensor([1, 3])
    picks = torch.rand(2, 300).topk(140).indices.sort().values
    cut = make_documents(ids).rows(rows).positions(picks)
    assert torch.equal(cut.ids, ids[rows].gather(1, picks))
    elsewhere = make_documents(ids.to("meta")).rows(rows.to("meta")).positions(picks.to("meta"))
    assert elsewhere.blocks is not None
    assert elsewhere.blocks.shape == (2, 1, 140, 140)
