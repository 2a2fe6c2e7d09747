from pathlib import Path

import pytest

from benchmarks.save_kill import soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_being_killed_in_saves_loses_no_checkpoint_and_changes_no_loss(
    tmp_path: Path, asynchronous: bool
) -> None:
    outcome = soak(tmp_path / "soak", asynchronous=asynchronous, kills=4, seed=3)
    assert sum(outcome.phases.values()) == 4
    assert outcome.same_curve
    assert max(outcome.lost) <= 2
    assert outcome.steps > 4
