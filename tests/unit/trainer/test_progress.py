import logging
import re

import pytest

from tests.unit.trainer.test_metrics import spike_metrics, step_metrics, valid_metrics
from trainer.progress import Progress


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _hear_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_log_file_gets_a_line_every_log_every_steps_the_first_and_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Progress(7, log_every=3, terminal=False) as progress:
        for step in range(1, 8):
            progress.train(step_metrics(step))
    assert [line.split()[1] for line in lines(caplog)] == ["1/7", "3/7", "6/7", "7/7"]


def test_a_plain_line_says_loss_rate_speed_and_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Progress(2, terminal=False) as progress:
        progress.train(step_metrics(2, loss=3.25, tokens_per_second=12345.0))
    expected = r"step 2/2  loss 3\.2500  lr 1\.00e-03  12\.3k tok/s  ETA 00:00"
    assert re.fullmatch(expected, lines(caplog)[0])


def test_a_resumed_run_estimates_from_its_own_steps_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 120.0])
    monkeypatch.setattr("trainer.progress.time.perf_counter", lambda: next(clock))
    with Progress(100, start_step=90, log_every=1, terminal=False) as progress:
        progress.train(step_metrics(92))
    assert lines(caplog)[0].endswith("ETA 01:20")


def test_validation_says_the_perplexity_at_every_exit(caplog: pytest.LogCaptureFixture) -> None:
    with Progress(4, terminal=False) as progress:
        progress.valid(
            valid_metrics(4, perplexity_per_exit={1: 400.0, 2: 150.5}, speedup_per_exit={})
        )
    assert lines(caplog) == ["valid at step 4: perplexity by exit 1:400 2:150.5"]


def test_validation_says_which_exit_would_draft_best(caplog: pytest.LogCaptureFixture) -> None:
    with Progress(4, terminal=False) as progress:
        progress.valid(valid_metrics(4))
    (line,) = lines(caplog)
    assert line.endswith("; drafting 4 at exit 2 would be 1.25x as fast as plain decoding")


def test_a_terminal_gets_a_bar_with_loss_and_speed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(4, start_step=1, terminal=True) as progress:
        progress.advance(3)
        progress.train(step_metrics(4, loss=3.25))
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss 3.250, 2.05k tok/s" in shown
    assert lines(caplog) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_are_silent(
    terminal: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(2, enabled=False, terminal=terminal) as progress:
        progress.advance(1)
        progress.train(step_metrics(2))
        progress.valid(valid_metrics(2))
    assert lines(caplog) == []
    assert capsys.readouterr().err == ""


def test_a_spike_says_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    with Progress(30, terminal=False) as progress:
        progress.spike(spike_metrics(18))
        progress.spike(spike_metrics(16, spike_step=18, policy="rollback"))
    skipped, went_back = lines(caplog)
    assert skipped == "spike at step 18: the loss at exit 4 is nan; skipped its update"
    assert went_back.endswith("went back to step 15, on to the data after it")
