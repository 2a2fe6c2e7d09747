import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.loader import IGNORED, Loader
from models.plan import full
from models.tokens import make_tokens
from parallel.config import ParallelConfig
from parallel.world import start
from tests.distributed.recipe import make_engine, model_config
from tests.ranks import run_ranks
from tests.unit.trainer.test_acceptance import count_by_hand
from trainer.acceptance import MOST_DRAFTS
from trainer.validate import validate

pytestmark = pytest.mark.ranks

LENGTH, SEQUENCES, ROWS = 16, 11, 2


class Sequences:
    """Random ids, with a border of documents in each row and some that are not to be predicted."""

    def __len__(self) -> int:
        return SEQUENCES

    def rows(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        ids, documents = [], []
        for index in indices.tolist():
            drawn = torch.Generator().manual_seed(index)
            row = torch.randint(0, 96, (LENGTH + 1,), generator=drawn)
            row[1 : 1 + index % 3] = ~row[1 : 1 + index % 3]
            ids.append(row)
            documents.append((torch.arange(LENGTH + 1) > index).long())
        return torch.stack(ids), torch.stack(documents)


def loader() -> Loader:
    sequences = Sequences()
    return Loader(sequences, seed=0, micro_batch_size=ROWS, num_microbatches=1, documents=True)


def _validated() -> dict[str, Tensor]:
    world = start(device="cpu")
    engine = make_engine(model_config(), ParallelConfig(), world)
    found = validate(engine, loader(), world, step=1, sequences=SEQUENCES, chunk_tokens=8)
    return {
        "acceptance": torch.tensor(list(found.acceptance_per_exit.values()), dtype=torch.float64),
        "lengths": torch.tensor(list(found.draft_length_per_exit.values())),
        "speedups": torch.tensor(list(found.speedup_per_exit.values()), dtype=torch.float64),
    }


def _by_hand() -> Tensor:
    """On a rank: the acceptance of each exit and length, counted token by token."""
    engine = make_engine(model_config(), ParallelConfig(), start(device="cpu"))
    data, model = loader(), engine.model
    sums = np.zeros((4, MOST_DRAFTS, 3))
    for index in range(data.num_sequential):
        batch = data.sequential(index)
        tokens = make_tokens(model.config, batch.positions, documents=batch.documents)
        with torch.no_grad():
            states = engine.forward(batch.ids, tokens, full(5, exits=range(1, 6)))
            best = {e: model.unembed(h).argmax(-1) for e, h in states.items()}
        for e, most, row in np.ndindex(4, MOST_DRAFTS, len(batch.ids)):
            same = (best[e + 1][row] == best[5][row]).tolist()
            known = (batch.labels[row] != IGNORED).tolist()
            sums[e, most] += count_by_hand(same, known, most + 1)
    return torch.from_numpy(sums[..., 2] / sums[..., 1])


def test_acceptance_is_the_same_on_any_number_of_ranks_and_that_of_a_count_by_hand() -> None:
    (alone,) = run_ranks(_validated, world=1)
    assert 0 < alone["acceptance"].mean() < 1
    assert torch.equal(alone["acceptance"], run_ranks(_by_hand, world=1)[0])
    for ranks in (2, 4):
        for found in run_ranks(_validated, world=ranks):
            assert all(torch.equal(found[name], alone[name]) for name in alone)
