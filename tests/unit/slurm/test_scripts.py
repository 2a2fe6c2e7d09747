import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.command import ROOT


def bash(text: str, **environment: str) -> str:
    """Return what bash prints, run from the repository's root and outside of Slurm."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMP", "RANKS"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env=kept | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def env(show: str, **environment: str) -> str:
    return bash(f"source slurm/env.sh; {show}", **environment)


def test_without_slurm_a_script_says_what_it_would_do() -> None:
    said = bash("bash slurm/pretrain.sh configs/pretrain/debug.yaml steps=40", RANKS_PER_NODE="2")
    assert said.startswith("not under Slurm, nothing is run.")
    assert "code/JOB/config.yaml steps=40" in said
    assert "2 ranks a node" in said
    assert "until   step 40" in said
    assert "missing" not in said
    said = bash("bash slurm/pretrain.sh configs/pretrain/llama_1.5b.yaml", RANKS_PER_NODE="8")
    assert "data.tokenizer.path=tokenizer.model: not on this machine" in said


def test_ranks_are_the_gpus_of_a_node_and_share_its_cores() -> None:
    show = 'echo "$RANKS_PER_NODE $OMP_NUM_THREADS"'
    assert env(show, SLURM_GPUS_ON_NODE="4", SLURM_CPUS_ON_NODE="48") == "4 12"
    assert env(show, SLURM_GPUS_ON_NODE="0", SLURM_CPUS_ON_NODE="6") == "1 6"
    assert env(show, SLURM_GPUS_ON_NODE="8", SLURM_CPUS_ON_NODE="4") == "8 1"


def test_what_the_user_set_stays() -> None:
    show = 'set_interfaces 127.0.0.1; echo "$RANKS_PER_NODE $OMP_NUM_THREADS $GLOO_SOCKET_IFNAME"'
    mine = {"RANKS_PER_NODE": "3", "OMP_NUM_THREADS": "5", "GLOO_SOCKET_IFNAME": "ib0"}
    assert env(show, SLURM_GPUS_ON_NODE="4", **mine) == "3 5 ib0"


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_the_interface_is_the_one_that_leads_to_the_other_node() -> None:
    show = 'set_interfaces localhost; echo "${GLOO_SOCKET_IFNAME-} ${NCCL_SOCKET_IFNAME-}"'
    unset = "unset GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME; "
    assert env(unset + show, SLURM_JOB_NUM_NODES="2") == "lo =lo"
    assert env(unset + show, SLURM_JOB_NUM_NODES="1") == "lo"
    assert env(unset + show.replace("localhost", "no.such.host.invalid")) == ""


def test_jobs_on_one_node_have_ports_of_their_own() -> None:
    assert env("free_port 17; free_port 18") == "20017\n20018"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        number = str(port - 20000)
        show = f'(($(free_port {number}) != {port})) && echo "another"'
        assert env(show) == "another"


def exits(folder: Path, *names: str) -> str:
    """Return what is said of ranks that ended in the order of the names."""
    folder = folder / "logs" / "17.0"
    (folder / "exits").mkdir(parents=True, exist_ok=True)
    for order, name in enumerate(names):
        (folder / "exits" / name).touch()
        os.utime(folder / "exits" / name, ns=(order, order))
    show = 'exit=$(first_exit); echo "$exit $(meaning "$exit"): $(first_error "$exit")"'
    return bash(f"source slurm/exits.sh; {show}", LOGS=str(folder))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0.1.0", "0.0.0"], "0.1.0 finished"),
        (["0.3.1", "0.0.75"], "0.3.1 fault"),
        (["0.3.137", "0.0.75", "0.1.1"], "0.3.137 lost"),
        (["0.3.137", "0.0.75", "1.0.1", "1.3.75"], "1.0.1 fault"),
        (["10.0.137", "9.0.1"], "9.0.1 fault"),
        (["0.2.143", "0.1.0"], "0.2.143 stopped"),
        ([], "lost"),
    ],
)
def test_the_rank_that_ended_first_in_the_last_attempt_is_the_cause(
    tmp_path: Path, names: list[str], said: str
) -> None:
    assert exits(tmp_path, *names).startswith(f"{said}: ")


def test_the_cause_is_told_in_the_words_of_the_rank(tmp_path: Path) -> None:
    log = "== rank 3\n[rank 3] error: an earlier one\nmore\n[rank 3] error: step 7: loss is nan\n"
    (tmp_path / "logs" / "17.0").mkdir(parents=True)
    (tmp_path / "logs" / "17.0" / "rank-3.log").write_text(log)
    said = exits(tmp_path, "0.3.1", "0.0.75")
    assert said.endswith("rank 3 ended first, with code 1: [rank 3] error: step 7: loss is nan")


def test_where_the_log_was_cut_off_the_report_of_this_start_is_quoted(tmp_path: Path) -> None:
    logs, report = tmp_path / "logs" / "17.0", tmp_path / "failures" / "rank-3.txt"
    for folder in (logs / "exits", report.parent):
        folder.mkdir(parents=True)
    (logs / "rank-3.log").write_text("== rank 3\n[rank 3] step 6\n")
    report.write_text("==== now\nreason: the disk is full\nstacks:\nreason = 1\n")
    assert exits(tmp_path, "0.3.1").endswith("with code 1: the disk is full")
    os.utime(report, (0, 0))
    assert exits(tmp_path, "0.3.1").endswith("with code 1: it said nothing")


def test_a_killed_rank_has_no_words_and_its_signal_is_told(tmp_path: Path) -> None:
    said = exits(tmp_path, "0.12.137", "0.0.75")
    assert "rank 12 ended first, with code 137: ended by signal 9, without a word" in said


def test_what_is_wrong_with_a_config_is_said_before_anything_is_queued() -> None:
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "slurm/pretrain.sh", "configs/pretrain/debug.yaml", "stepz=1"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert "stepz" in said
