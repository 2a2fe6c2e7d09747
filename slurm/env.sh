# What every job needs: the interpreter, ranks per node, threads, the head node. Sourced, not run.
# Clusters with modules load them here.

PYTHON=${PYTHON:-.venv/bin/python}

# One rank for each GPU of a node; on CPU nodes one for each half of the cores, two at most.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  RANKS_PER_NODE=${RANKS_PER_NODE:-$SLURM_GPUS_ON_NODE}
elif command -v nvidia-smi > /dev/null; then
  RANKS_PER_NODE=${RANKS_PER_NODE:-$(nvidia-smi --list-gpus | wc -l)}
else
  RANKS_PER_NODE=${RANKS_PER_NODE:-1}
fi

cores=${SLURM_CPUS_ON_NODE:-$(nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS_PER_NODE ? cores / RANKS_PER_NODE : 1))}

# The address of the job's first node, as Slurm knows it; this machine without Slurm.
head_address() {
  if [[ -z ${SLURM_JOB_NODELIST:-} ]]; then
    echo 127.0.0.1
    return
  fi
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  scontrol show node "$first" -o | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}
