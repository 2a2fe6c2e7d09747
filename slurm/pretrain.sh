#!/usr/bin/env bash
# Train on one or more nodes:
#   sbatch --nodes 2 slurm/pretrain.sh configs/pretrain/x.yaml key=value ...
# Without Slurm it prints what it would run:
#   bash slurm/pretrain.sh configs/pretrain/x.yaml key=value ...
#
#SBATCH --job-name=skipstone
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch [--nodes N] slurm/pretrain.sh CONFIG [key=value ...]" >&2
  exit 2
fi

# Under Slurm $0 is a copy in the spool folder; jobs are submitted from the repository.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
source slurm/env.sh

launch=(
  "$PYTHON" -m torch.distributed.run
  --nnodes "${SLURM_JOB_NUM_NODES:-1}"
  --nproc-per-node "$RANKS_PER_NODE"
  --master-addr "$(head_address)"
  --master-port "$((20000 + ${SLURM_JOB_ID:-0} % 20000))"
)

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "not under Slurm; each node would run:"
  printf ' %q' "${launch[@]}" -m trainer "$@"
  echo
  exit 0
fi

# Slurm warns the batch script with USR1 ahead of the time limit; TERM to the steps makes every rank
# save and end, and the job is put back into the queue to go on from there.
requeue() {
  echo "USR1: saving, then requeueing job $SLURM_JOB_ID"
  scancel --signal=TERM "$SLURM_JOB_ID"
  wait "$steps" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1

# SLURM_NODEID differs from node to node, so each node reads it; exec lets signals reach torchrun.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'PET_NODE_RANK=$SLURM_NODEID exec "$@"' _ \
  "${launch[@]}" -m trainer "$@" &
steps=$!
wait "$steps"
