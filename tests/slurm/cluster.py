"""A real Slurm of two nodes on this machine, for as long as a `with` block lasts.

Everything is on 127.0.0.1 and in one temporary folder: munged, slurmctld, and a slurmd for each
node. Two partitions share the nodes: `low`, whose jobs are preempted and requeued, and `high`. It
needs root and Debian's packages, and touches nothing of the system's own Slurm.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client"
FREEZER = Path("/sys/fs/cgroup/freezer")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
GRACE, KILL_WAIT, NODE_TIMEOUT = 60, 30, 20
"""Seconds from preemption's SIGTERM to the kill, from a time limit's, and until a node is down."""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# How long a credential lasts is also how long a requeued job waits.
AuthInfo=socket={root}/munge.socket,cred_expire={requeue_wait}
CommunicationParameters={listen}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/{proctrack}
Epilog={root}/epilog.sh
MailProg=/bin/true
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=5
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout={node_timeout}
KillWait={kill_wait}
MinJobAge=86400
InactiveLimit=0
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=100000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=100000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

EPILOG = """#!/bin/bash
# At a job's end on a node: kill what it left there, as cgroups would.
[ -n "$SLURM_JOB_ID" ] && [ -n "$SLURMD_NODENAME" ] || exit 0
for folder in /proc/[0-9]*; do
  env=$(tr '\\0' '\\n' 2>/dev/null <"$folder/environ") || continue
  grep -qxF "SLURM_JOB_ID=$SLURM_JOB_ID" <<<"$env" || continue
  grep -qxF "SLURMD_NODENAME=$SLURMD_NODENAME" <<<"$env" || continue
  grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$env" || continue
  grep -q '^SLURM_SCRIPT_CONTEXT=' <<<"$env" || kill -KILL "${folder#/proc/}" 2>/dev/null
done
exit 0
"""


def missing() -> str | None:
    """Say in one line what keeps a cluster from being started here; None if nothing does."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if lacking:
        return f"no Slurm to start here, without {', '.join(lacking)}: {INSTALL}"
    if os.geteuid() != 0:
        return "a Slurm cluster can only be started by root here: slurmd has to become other users"
    return None


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: if it does not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


@dataclass
class Cluster:
    """The running daemons, and what can be done to them."""

    root: Path
    nodes: tuple[str, str]
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return kept | {"PATH": PATH, "SLURM_CONF": str(self.root / "slurm.conf")}

    def run(self, *command: str, cwd: Path | None = None, **changes: str) -> str:
        """Run a command of Slurm; return what it printed.

        Raises:
            RuntimeError: if it fails, with what it said.
        """
        environment = self.environment | changes
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return Slurm's fields of a job."""
        words = self.run("scontrol", "show", "job", number, "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def fail_node(self, node: str) -> None:
        """Kill a node's slurmd, its step daemons and its tasks: a power failure."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, and wait until the node can be used."""
        self._start(node, "slurmd", "-D", "-f", f"{self.root}/slurm.conf", "-N", node)
        wait_until(lambda: self._usable(node), 60, f"node {node} usable")

    def processes(self, node: str | None = None) -> list[int]:
        """Return the step daemons and tasks of this cluster's jobs, on one node or all."""
        daemons = {process.pid for process in self.daemons.values()}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(word.split("=", 1) for word in words if "=" in word)
                where = environment.get("SLURMD_NODENAME") or environment.get("SLURM_TEST_NODE")
                ours = environment.get("SLURM_CONF") == f"{self.root}/slurm.conf"
                wanted = where in (self.nodes if node is None else (node,))
                if ours and wanted and int(folder.name) not in daemons:
                    found.append(int(folder.name))
        return found

    def _start(self, name: str, *command: str) -> None:
        environment = {
            "PATH": PATH,
            "SLURM_CONF": f"{self.root}/slurm.conf",
            "SLURM_TEST_NODE": name,
        }
        with (self.root / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _usable(self, node: str) -> bool:
        state = self.run("sinfo", "-h", "-N", "-n", node, "-p", "low", "-o", "%T").strip()
        if state.rstrip("*").startswith(("down", "drain")):
            with contextlib.suppress(RuntimeError):
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        return state in ("idle", "mixed", "allocated", "completing")

    def _answers(self) -> bool:
        with contextlib.suppress(RuntimeError):
            return "is UP" in self.run("scontrol", "ping")
        return False

    def start(self) -> None:
        """Start all daemons, and wait for them."""
        key = self.root / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(1024))
        names = ("pid-file", "socket", "key-file", "seed-file", "log-file")
        files = ("munge.pid", "munge.socket", "munge.key", "munge.seed", "munge.log")
        options = (f"--{n}={self.root}/{f}" for n, f in zip(names, files, strict=True))
        self._start("munged", "munged", "--foreground", *options)
        wait_until((self.root / "munge.socket").exists, 20, "munged")
        self._start("slurmctld", "slurmctld", "-D", "-f", f"{self.root}/slurm.conf")
        wait_until(self._answers, 30, "slurmctld")
        for node in self.nodes:
            self.start_node(node)

    def stop(self) -> None:
        """End all jobs, then the daemons that were started here, and nothing else."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--state=pending", "-u", "root")
            self.run("scancel", "-u", "root")
        for node in self.nodes:
            if node in self.daemons:
                self.fail_node(node)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.daemons.values():  # nothing of theirs is kept
            process.kill()
            process.wait()
        for node in self.nodes:
            for folder in sorted((FREEZER / f"slurm_{node}").rglob("*"), reverse=True):
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            with contextlib.suppress(OSError):
                (FREEZER / f"slurm_{node}").rmdir()


@contextlib.contextmanager
def cluster(*, requeue_wait: int = 10) -> Iterator[Cluster]:
    """Start a cluster, and stop it in the end.

    Args:
        requeue_wait: seconds that a requeued job waits. With dead nodes take 75: for a minute
            slurmctld tries to signal them, and would hit the job's next run.

    Raises:
        RuntimeError: if packages are missing, or this is not root.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    # Short, for the paths of sockets; munged refuses folders that others may write.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        root, names = Path(folder), (f"n{os.getpid()}x1", f"n{os.getpid()}x2")
        root.chmod(0o755)
        for name in ("state", *names):
            (root / name).mkdir()
        (root / "slurm.conf").write_text(_configuration(root, names, requeue_wait))
        settings = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n"
        (root / "cgroup.conf").write_text(settings)
        (root / "epilog.sh").write_text(EPILOG)
        (root / "epilog.sh").chmod(0o755)
        running = Cluster(root, names)
        try:
            running.start()
            yield running
        finally:
            running.stop()


def _configuration(root: Path, nodes: tuple[str, str], requeue_wait: int) -> str:
    host = socket.gethostname().split(".")[0]
    # srun and slurmd bind to the address of the host's name, which need not be 127.0.0.1.
    local = False
    with contextlib.suppress(OSError):
        local = socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
    listen = "NoInAddrAny,NoCtldInAddrAny" if local else "NoCtldInAddrAny"
    return CONF.format(
        host=host,
        ports=_free_ports(3),
        root=root,
        requeue_wait=requeue_wait,
        listen=listen,
        # As real clusters do: signals reach only what srun started, but SIGKILL all of it.
        proctrack="cgroup" if os.access(FREEZER / "cgroup.procs", os.W_OK) else "pgid",
        node_timeout=NODE_TIMEOUT,
        kill_wait=KILL_WAIT,
        nodes=nodes,
        grace=GRACE,
    )


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    sys.exit(missing())
