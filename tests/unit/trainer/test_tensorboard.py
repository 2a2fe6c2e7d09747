import dataclasses
import re
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    IMAGES,
    TENSORS,
    EventAccumulator,
)
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.unit.trainer.test_metrics import spike_metrics, step_metrics, valid_metrics
from trainer.metrics import MetricsWriter, read_metrics
from trainer.tensorboard import HPARAM_METRICS, LAYOUT, TensorBoardWriter, flatten


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    width: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    seed: int = 7
    tied: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    model: Shape = dataclasses.field(default_factory=Shape)
    resume: str | None = None


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0, TENSORS: 0})
    events.Reload()
    return events


def values(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in read(folder).Scalars(tag)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    writer = TensorBoardWriter(folder, Config(), num_layers=4)
    for step in (1, 2, 3):
        writer.train(step_metrics(step, flop_fraction=0.8, step_seconds=0.4 * step))
    writer.spike(spike_metrics(3))
    writer.valid(valid_metrics(3))
    writer.close()
    return folder


def test_a_spike_is_counted_and_explained(run: Path) -> None:
    assert values(run, "optim/left_out") == {3: 1.0}
    (event,) = read(run).Tensors("spikes/text_summary")
    assert event.tensor_proto.string_val == [b"step 3, skip: the loss at exit 4 is nan"]


def test_each_exit_has_a_run_and_the_last_is_the_main_one(run: Path) -> None:
    folders = sorted(path.name for path in run.iterdir() if path.is_dir())
    assert folders == ["exit_01", "exit_02", "exit_03"]
    assert values(run / "exit_02", "exits/loss_train")[1] == 5.0
    assert values(run, "exits/loss_train")[1] == 3.5
    assert values(run / "exit_01", "exits/loss_valid") == {3: 6.0}


def test_an_exit_that_is_off_weighs_zero(run: Path) -> None:
    assert values(run / "exit_01", "exits/weight") == {1: 0.0, 2: 0.0, 3: 0.0}
    assert values(run / "exit_02", "exits/weight")[3] == 0.25


def test_how_an_exit_would_draft_is_written_where_the_exit_is(run: Path) -> None:
    assert values(run / "exit_02", "exits/speedup_valid") == {3: 1.25}
    assert values(run / "exit_02", "exits/draft_length_valid") == {3: 4.0}
    assert values(run / "exit_01", "exits/acceptance_valid")[3] == pytest.approx(0.9 / 6)
    assert "exits/speedup_valid" not in read(run).Tags()["scalars"]


def test_the_last_exit_has_no_agreement_with_itself(run: Path) -> None:
    assert values(run / "exit_03", "exits/agreement_valid")[3] == pytest.approx(0.6)
    assert "exits/agreement_valid" not in read(run).Tags()["scalars"]


def test_dropout_is_written_by_layer_and_as_a_mean(run: Path) -> None:
    assert values(run, "drop_probability/layer_03")[1] == pytest.approx(0.3)
    assert values(run, "drop_rate/layer_02")[1] == pytest.approx(0.25)
    assert values(run, "drop_rate/mean")[1] == pytest.approx(0.75 / 4)


def test_step_time_is_relative_to_a_full_step(run: Path) -> None:
    # Step 1 took 0.4 s for 0.8 of the FLOPs: a full step would take 0.5 s.
    assert values(run, "compute/step_time_fraction")[1] == pytest.approx(0.8)
    # By step 3 the median full step is estimated at 1.0 s.
    assert values(run, "compute/step_time_fraction")[3] == pytest.approx(1.2)


def test_a_step_that_drops_every_layer_is_written_all_the_same(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, Config(), num_layers=4)
    writer.train(step_metrics(1, flop_fraction=0.0))
    writer.valid(valid_metrics(1))
    writer.close()
    assert values(tmp_path, "compute/flop_fraction") == {1: 0.0}


def test_every_chart_of_the_layout_finds_its_tags(run: Path) -> None:
    events = read(run)
    layout = Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    assert [category.title for category in layout.category] == list(LAYOUT)
    written = set(events.Tags()["scalars"]) | set(read(run / "exit_02").Tags()["scalars"])
    unmatched = [
        (chart.title, regex)
        for category in layout.category
        for chart in category.chart
        for regex in chart.multiline.tag
        if not any(re.match(regex, tag) for tag in written)
    ]
    assert unmatched == [("Model FLOP utilisation", "compute/mfu$")]  # not known on a CPU


def test_train_and_valid_losses_share_a_chart() -> None:
    (regex,) = LAYOUT["Loss"]["Loss per exit, train and valid"][1]
    assert re.match(regex, "exits/loss_train")
    assert re.match(regex, "exits/loss_valid")


def test_utilisation_is_written_where_it_is_known(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, Config(), num_layers=4)
    writer.train(step_metrics(1, mfu=0.5))
    writer.close()
    assert values(tmp_path, "compute/mfu") == {1: 0.5}


def test_the_config_is_a_text_page(run: Path) -> None:
    text = read(run).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\nseed: 7\n")
    assert text.endswith("\n```")


def test_hyperparameters_name_metrics_of_the_same_run(run: Path) -> None:
    events = read(run)
    plugin = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"])
    hparams = start.session_start_info.hparams
    assert hparams["model.width"].number_value == 64
    assert hparams["tied"].string_value == "true"
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    names = [metric.name.tag for metric in experiment.metric_infos]
    assert names == list(HPARAM_METRICS)
    assert set(names) <= set(events.Tags()["scalars"])
    assert "_hparams_/session_end_info" in plugin


def test_a_run_that_stopped_early_is_not_shown_as_done(tmp_path: Path) -> None:
    TensorBoardWriter(tmp_path, Config(), num_layers=4).close(finished=False)
    assert "_hparams_/session_end_info" not in read(tmp_path).PluginTagToContent("hparams")


def test_validation_draws_the_active_exits_and_the_dropped_layers(run: Path) -> None:
    events = read(run)
    assert events.Tags()["images"] == ["exits/active", "drop_rate/layers"]
    assert [image.step for image in events.Images("exits/active")] == [3]


def test_what_was_written_is_on_disk_before_the_writer_closes(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, Config(), num_layers=4)
    writer.train(step_metrics(1))
    assert values(tmp_path, "loss/train") == {1: 4.0}
    assert values(tmp_path / "exit_02", "exits/loss_train") == {1: 5.0}
    writer.close()


def test_a_killed_and_resumed_run_shows_one_curve(tmp_path: Path) -> None:
    board = tmp_path / "tensorboard"
    metrics = MetricsWriter(tmp_path)
    killed = TensorBoardWriter(board, Config(), num_layers=4)
    for step in range(1, 7):
        metrics.train(step_metrics(step))
        killed.train(step_metrics(step, loss=99.0))
    killed.close(finished=False)
    # Event files are read in the order of their names: the second, then a counter as text, where 10
    # comes before 9. A run is not resumed within the second in which it was killed.
    time.sleep(1.1)
    metrics = MetricsWriter(tmp_path, resume_step=4)
    past = read_metrics(metrics.path)
    resumed = TensorBoardWriter(board, Config(), num_layers=4, resume_step=4, past=past)
    for step in range(5, 9):
        resumed.train(step_metrics(step, loss=1.0, loss_per_exit={2: 1.0, 4: 1.0}))
    resumed.close()
    assert list(values(board, "loss/train").items()) == [
        *((step, 99.0) for step in range(1, 5)),
        *((step, 1.0) for step in range(5, 9)),
    ]
    assert list(values(board / "exit_02", "exits/loss_train")) == list(range(1, 9))


def test_flatten_gives_dotted_keys_and_plain_values() -> None:
    assert flatten(dataclasses.asdict(Config())) == {
        "seed": 7,
        "tied": "true",
        "betas": "[0.9, 0.95]",
        "model.width": 64,
        "resume": "null",
    }
