import pytest

from trainer.curriculum import active_exits
from trainer.exit_weights import check_exit_loss, exit_weights, layer_weight
from trainer.recipe_config import ExitLossConfig

ALL = ExitLossConfig(e_scale=0.2, curriculum="all")


def rotational(rotation: int, e_scale: float = 0.1, *, include_last: bool = True) -> ExitLossConfig:
    return ExitLossConfig(
        e_scale=e_scale, curriculum="rotational", rotation=rotation, include_last=include_last
    )


@pytest.mark.parametrize(
    ("layer", "num_layers", "e_scale", "weight"),
    [
        (0, 32, 0.2, 0.0),
        (1, 32, 0.2, 0.2),
        (2, 32, 0.2, 0.6),
        (3, 32, 0.2, 1.2),
        (30, 32, 0.2, 93.0),
        (31, 32, 0.2, 124.0),
        (38, 40, 0.1, 74.1),
        (39, 40, 0.1, 113.1),
    ],
)
def test_a_layer_weighs_what_the_paper_says(
    layer: int, num_layers: int, e_scale: float, weight: float
) -> None:
    assert layer_weight(layer, num_layers, e_scale) == pytest.approx(weight)


def test_two_active_exits_share_the_weight_as_in_the_paper() -> None:
    # L = 40, R = 39 at a step that enables the exit after layer 19, named 20.
    weights = exit_weights(rotational(39), 40, 19, 50_000)
    assert list(weights) == [20, 40]
    assert weights[20] == pytest.approx(0.144, abs=5e-4)
    assert weights[40] == pytest.approx(0.856, abs=5e-4)


@pytest.mark.parametrize(
    "config",
    [
        ALL,
        rotational(8),
        rotational(31),
        rotational(5, 1.0, include_last=False),
        ExitLossConfig(e_scale=1.0, curriculum="gradual"),
    ],
)
@pytest.mark.parametrize("num_layers", [8, 32])
def test_weights_sum_to_one_and_are_positive_at_every_step(
    config: ExitLossConfig, num_layers: int
) -> None:
    for step in range(64):
        weights = exit_weights(config, num_layers, step, 64)
        assert sum(weights.values()) == pytest.approx(1.0)
        assert min(weights.values()) > 0
        assert list(weights) == sorted(weights)


def test_the_exit_after_the_first_layer_has_no_weight_and_is_left_out() -> None:
    assert active_exits(ALL, 4, 0, 10) == (1, 2, 3, 4)
    assert list(exit_weights(ALL, 4, 0, 10)) == [2, 3, 4]


def test_without_a_section_the_last_exit_has_all_the_weight() -> None:
    assert exit_weights(None, 12, 7, 100) == {12: 1.0}


@pytest.mark.parametrize("curriculum", ["all", "gradual"])
def test_a_scale_of_zero_is_plain_training(curriculum: str) -> None:
    config = ExitLossConfig(e_scale=0.0, curriculum=curriculum)  # type: ignore[arg-type]
    assert {tuple(exit_weights(config, 6, t, 60).items()) for t in range(60)} == {((6, 1.0),)}


@pytest.mark.parametrize(("rotation", "num_layers"), [(4, 4), (5, 4)])
def test_a_rotation_that_leaves_a_step_without_a_loss_is_refused(
    rotation: int, num_layers: int
) -> None:
    config = rotational(rotation, include_last=False)
    with pytest.raises(ValueError, match=f"^exit_loss.rotation {rotation} .* less than 4$"):
        exit_weights(config, num_layers, 0, 10)


def test_a_rotation_shorter_than_the_depth_always_leaves_a_loss() -> None:
    for num_layers in range(2, 9):
        for rotation in range(1, num_layers):
            config = rotational(rotation, include_last=False)
            check_exit_loss(config, num_layers)
            assert all(exit_weights(config, num_layers, step, 20) for step in range(20))


def test_exit_loss_in_a_model_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^exit_loss needs .* 2 layers, got 1: "):
        check_exit_loss(ALL, 1)
