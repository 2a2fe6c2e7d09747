import os
import socket
from pathlib import Path

import pytest

from tests.e2e.runs import write_config
from tests.ranks import run_ranks
from trainer.__main__ import main

pytestmark = pytest.mark.e2e


def _start_as_one_of_two(config: str, port: int) -> str:
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        main([config])
    except ConnectionError as error:
        return str(error)
    raise AssertionError("it went on alone")


def test_a_rank_whose_peer_never_comes_says_that_starting_again_may_help(tmp_path: Path) -> None:
    timeouts = {"timeout_seconds": 1, "long_timeout_seconds": 2}
    config = write_config(tmp_path, parallel=timeouts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (message,) = run_ranks(_start_as_one_of_two, str(config), port, world=1, group=False)
    assert message.startswith("a rank did not answer: ")
