import math

import pytest

from trainer.curriculum import active_exits, dropout_scale
from trainer.recipe_config import ExitLossConfig


def rotational(rotation: int, *, include_last: bool = True) -> ExitLossConfig:
    return ExitLossConfig(
        e_scale=0.2, curriculum="rotational", rotation=rotation, include_last=include_last
    )


def test_the_constant_dropout_scale_is_one_at_every_step() -> None:
    assert {dropout_scale("constant", step, 10) for step in range(10)} == {1.0}


def test_the_exponential_dropout_scale_follows_the_paper() -> None:
    scale = [dropout_scale("exp", step, 1001) for step in range(1001)]
    assert scale == pytest.approx([math.exp(t * math.log(2) / 1000) - 1 for t in range(1001)])
    assert (scale[0], scale[-1]) == (0.0, 1.0)
    assert sum(scale) / 1001 == pytest.approx(0.443, abs=1e-3)  # the mean over training


def test_the_exponential_dropout_scale_of_a_single_step_is_zero() -> None:
    assert dropout_scale("exp", 0, 1) == 0.0


def test_without_a_section_only_the_last_exit_is_active() -> None:
    assert active_exits(None, 12, 3, 100) == (12,)


def test_the_curriculum_all_enables_every_exit_in_every_step() -> None:
    config = ExitLossConfig(e_scale=0.2, curriculum="all")
    assert {active_exits(config, 4, step, 10) for step in range(10)} == {(1, 2, 3, 4)}


def test_rotational_enables_every_r_th_exit_and_shifts_by_one_each_step() -> None:
    exits = [active_exits(rotational(4, include_last=False), 8, step, 100) for step in range(5)]
    assert exits == [(1, 5), (2, 6), (3, 7), (4, 8), (1, 5)]


@pytest.mark.parametrize("rotation", [1, 3, 8, 11, 12, 15])
def test_rotational_enables_each_exit_once_in_r_steps(rotation: int) -> None:
    config = rotational(rotation, include_last=False)
    for start in (0, 5, 1000):
        steps = range(start, start + rotation)
        seen = [e for step in steps for e in active_exits(config, 12, step, 2000)]
        assert sorted(seen) == list(range(1, 13))


@pytest.mark.parametrize("rotation", [1, 3, 8, 11, 12, 15])
def test_rotational_unembeds_at_most_l_over_r_exits_and_the_last(rotation: int) -> None:
    for step in range(40):
        forced = active_exits(rotational(rotation), 12, step, 100)
        free = active_exits(rotational(rotation, include_last=False), 12, step, 100)
        assert forced == tuple(sorted({*free, 12}))
        assert len(free) <= math.ceil(12 / rotation)


def test_a_rotation_of_one_less_than_the_depth_gives_one_exit_beside_the_last() -> None:
    exits = [active_exits(rotational(31), 32, step, 50_000) for step in range(31)]
    assert exits == [(e, 32) for e in range(1, 32)]


def test_gradual_enables_one_more_exit_from_the_top_every_t_over_2l_steps() -> None:
    config = ExitLossConfig(e_scale=1.0, curriculum="gradual")
    counts = [len(active_exits(config, 6, step, 60)) for step in range(60)]
    first = {count: counts.index(count) for count in sorted(set(counts))}
    # Exit 6 is forced on from the start; the curriculum itself enables it at step 5.
    assert first == {1: 0, 2: 10, 3: 15, 4: 20, 5: 25, 6: 30}
    assert active_exits(config, 6, 17, 60) == (4, 5, 6)


@pytest.mark.parametrize(("num_layers", "total_steps"), [(6, 60), (24, 5800), (7, 101), (5, 3)])
def test_gradual_has_all_exits_from_half_of_training_and_not_before(
    num_layers: int, total_steps: int
) -> None:
    config = ExitLossConfig(e_scale=1.0, curriculum="gradual")
    for step in range(total_steps):
        all_on = len(active_exits(config, num_layers, step, total_steps)) == num_layers
        assert all_on == (step >= total_steps / 2)
