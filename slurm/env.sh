# What every job needs: the interpreter, ranks per node, threads, addresses, a port, interfaces.
# Sourced, not run. What is set already stays. Clusters with modules load them here.

PYTHON=${PYTHON:-$PWD/.venv/bin/python}

# Ranks of a node: one for each of its GPUs, one where it has none.
ranks_per_node() {
  local gpus=${SLURM_GPUS_ON_NODE:-}
  if [[ -z $gpus ]] && command -v nvidia-smi > /dev/null; then
    gpus=$(nvidia-smi --list-gpus 2> /dev/null | grep -c '^GPU') || true
  fi
  echo "$((${gpus:-0} > 0 ? gpus : 1))"
}

# Threads of a rank: its share of the cores that the job may use on a node.
threads_per_rank() {
  local cores=${SLURM_CPUS_ON_NODE:-$(nproc)}
  echo "$((cores > $1 ? cores / $1 : 1))"
}

RANKS_PER_NODE=${RANKS_PER_NODE:-$(ranks_per_node)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "$RANKS_PER_NODE")}

# Addresses of the job's nodes as Slurm knows them, one a line, the head first.
node_addresses() {
  if ((${SLURM_JOB_NUM_NODES:-1} == 1)); then
    echo 127.0.0.1
    return
  fi
  local node
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    scontrol show node "$node" -o | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
  done
}

# A port of this machine that nobody listens on: the jobs' numbers keep them apart, below the range
# from which Linux takes ports for outgoing connections.
free_port() {
  local port=$((20000 + ${1:-0} % 12000))
  while (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
    port=$((20000 + (port - 20000 + 1) % 12000))
  done
  echo "$port"
}

# The interface through which this node reaches an address or a host; nothing if that is unknown.
interface_to() {
  local address
  address=$(getent ahosts "$1" | awk 'NR == 1 {print $1}')
  [[ -n $address ]] || return 0
  ip route get "$address" 2> /dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1
}

# gloo and NCCL find one another through the interface that leads to another node of the job; left
# alone they take the one that the host's name resolves to, often the wrong one.
set_interfaces() {
  local name
  name=$(interface_to "$1") || true
  [[ -n $name ]] || return 0
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$name}
  if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-=$name}
  fi
}
