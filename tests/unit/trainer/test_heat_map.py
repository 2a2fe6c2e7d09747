import numpy as np

from trainer.heat_map import MAX_COLUMNS, StepHistory, heat_map


def test_a_short_history_keeps_every_step() -> None:
    history = StepHistory(2)
    for step in range(1, 6):
        history.add(step, [step, 0.0])
    assert history.means.tolist() == [[1, 2, 3, 4, 5], [0, 0, 0, 0, 0]]
    assert history.steps == (1, 5)


def test_a_long_history_merges_neighbours_and_keeps_their_means() -> None:
    history = StepHistory(1)
    count = 4 * MAX_COLUMNS
    for step in range(count):
        history.add(step, [step])
    expected = np.arange(count).reshape(MAX_COLUMNS, 4).mean(axis=1)
    assert np.array_equal(history.means[0], expected)


def test_the_mean_of_a_column_that_is_not_full_counts_its_own_steps() -> None:
    history = StepHistory(1)
    for step in range(MAX_COLUMNS + 1):
        history.add(step, [0.0 if step < MAX_COLUMNS else 1.0])
    assert history.means.shape == (1, MAX_COLUMNS // 2 + 1)
    assert history.means[0, -1] == 1.0


def test_the_picture_shows_high_values_brighter() -> None:
    history = StepHistory(2)
    for step in range(10):
        history.add(step, [0.0, 1.0])
    pixels = heat_map(history, first=1, title="on", ylabel="exit", top=1.0)
    height, width, colours = pixels.shape
    assert colours == 3
    column = pixels[:, width // 2].sum(axis=1, dtype=int)
    middle = column[height // 4 : -height // 3]  # inside the axes
    assert middle[0] > middle[-1]  # exit 2 is drawn above exit 1
