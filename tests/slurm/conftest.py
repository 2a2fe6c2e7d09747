"""One cluster and one unbroken run for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.runs import train
from tests.slurm.cluster import Cluster, cluster, missing
from tests.slurm.jobs import checkout, run_config


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    if (reason := missing()) is not None:
        pytest.fail(reason, pytrace=False)
    with cluster() as running:
        yield running


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_config(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def unbroken(config: Path) -> Path:
    train([str(config)])
    return config.parent / "run"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkout to submit from."""
    return checkout(tmp_path / "checkout")
