import pytest
import torch

from inference.batch_accept import accept_rows, choose_rows
from inference.sample import SamplingConfig, accept, distribution

GREEDY, WARM = SamplingConfig(), SamplingConfig(temperature=0.8, top_k=9)
ROWS, DRAFTS, VOCABULARY = 6, 4, 12


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_greedy_rows_keep_what_each_would_alone() -> None:
    logits = torch.randn(ROWS, DRAFTS + 1, VOCABULARY)
    drafts = logits.argmax(-1)[:, :-1].clone()
    for row in range(ROWS - 1):
        drafts[row, row % DRAFTS] = (drafts[row, row % DRAFTS] + row % 2) % VOCABULARY
    counts = torch.tensor([4, 4, 2, 0, 3, 4])
    kept, token = accept_rows(logits, drafts, [], counts, GREEDY, None)
    assert kept.tolist() == [4, 1, 2, 0, 3, 4]
    for row, count in enumerate(counts.tolist()):
        alone, _, last = accept(
            logits[row, : count + 1],
            [drafts[row, i : i + 1] for i in range(count)],
            [],
            GREEDY,
            _generator(),
        )
        assert [*drafts[row, : int(kept[row])].tolist(), int(token[row])] == alone
        assert int(token[row]) == int(last)


def test_what_fills_the_batch_beyond_a_rows_drafts_changes_nothing() -> None:
    logits, q = torch.randn(2, DRAFTS + 1, VOCABULARY), torch.rand(2, DRAFTS, VOCABULARY)
    drafts, uniform = torch.randint(VOCABULARY, (2, DRAFTS)), torch.rand(2, DRAFTS + 1)
    q = q / q.sum(-1, keepdim=True)
    counts = torch.tensor([2, DRAFTS])
    first = accept_rows(logits, drafts, list(q.unbind(1)), counts, WARM, uniform)
    logits[0, 3:], q[0, 2:], drafts[0, 2:] = 7.0, 1 / VOCABULARY, 0
    again = accept_rows(logits, drafts, list(q.unbind(1)), counts, WARM, uniform)
    assert [x.tolist() for x in first] == [x.tolist() for x in again]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_drafts_from_the_verifiers_own_distribution_are_all_kept(count: int) -> None:
    logits = torch.randn(ROWS, count + 1, VOCABULARY, dtype=torch.float64)
    p, uniform = distribution(logits, WARM), torch.rand(ROWS, 2 * count + 1, dtype=torch.float64)
    drafts = [choose_rows(logits[:, i], WARM, uniform[:, i : i + 1])[0] for i in range(count)]
    stacked = torch.stack(drafts, 1) if drafts else torch.zeros(ROWS, 0, dtype=torch.long)
    kept, token = accept_rows(
        logits,
        stacked,
        [p[:, i] for i in range(count)],
        torch.full((ROWS,), count),
        WARM,
        uniform[:, count:],
    )
    assert kept.tolist() == [count] * ROWS
    assert torch.equal(token, choose_rows(logits[:, -1], WARM, uniform[:, -1:])[0])


def test_kept_and_replaced_tokens_together_have_the_verifiers_distribution() -> None:
    many = 40_000
    p_logits, q_logits = torch.randn(2, 2, 5, dtype=torch.float64)
    q = distribution(q_logits, WARM)[0].expand(many, -1)
    uniform = torch.rand(many, 3, dtype=torch.float64, generator=_generator())
    drafts = choose_rows(q_logits[0].expand(many, -1), WARM, uniform[:, :1])[0][:, None]
    kept, token = accept_rows(
        p_logits.expand(many, -1, -1), drafts, [q], torch.ones(many).long(), WARM, uniform[:, 1:]
    )
    first = torch.where(kept == 1, drafts[:, 0], token)
    assert 0.1 < kept.double().mean() < 0.95
    frequencies = torch.bincount(first, minlength=5) / many
    torch.testing.assert_close(
        frequencies.double(), distribution(p_logits, WARM)[0], atol=0.01, rtol=0
    )
