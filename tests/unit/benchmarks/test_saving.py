import pytest

from benchmarks.saving import KINDS, figures


def test_steps_are_compared_within_their_round() -> None:
    slow, quick = (
        {"plain": (p, 2 * p), "background": (1.1 * p, 2.2 * p)}
        | {"following": (p, 2 * p), "waited": (2 * p, 3 * p)}
        for p in (10.0, 1.0)
    )
    measured = {"first": slow, "rounds": [slow, quick, quick], "bytes": 4_000_000}
    row = figures(measured, ranks=2)
    assert row["background_wall"] == pytest.approx(1.1)
    assert row["background_wall_quartiles"] == pytest.approx([1.1, 1.1])
    assert row["waited_wall"] == 2.0
    assert row["waited_cpu"] == 1.5
    assert row["step_seconds"] == 1.0
    assert row["state_mb_per_rank"] == 4.0
    assert {f"{kind}_cpu" for kind in KINDS[1:]} <= row.keys()
