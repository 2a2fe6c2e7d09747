#!/usr/bin/env bash
# Submit a job that runs the code and config as they are now, however long it waits in the queue:
#   bash slurm/submit.sh [options of sbatch] slurm/pretrain.sh CONFIG key=value ...
# (sbatch alone keeps only the script; the copy is then made when the job first starts.) A sweep gets
# its --array by itself. What is wrong with the config is said before anything is queued.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source slurm/env.sh

options=()
while (($# > 0)) && [[ $1 != *slurm/*.sh ]]; do
  options+=("$1")
  shift
done
if (($# < 2)); then
  echo "usage: bash slurm/submit.sh [options of sbatch] slurm/pretrain.sh CONFIG key=value ..." >&2
  exit 2
fi
script=$1 kind=$(basename "$1" .sh)
shift

# 0 ranks: how many there will be is known when the job starts.
described=$("$PYTHON" -m slurm.prepare "$kind" - 0 "$@") # apart from eval, which hides a failure
eval "$described"
if [[ $kind == sweep ]]; then options+=(--array "0-$((${#SETTINGS[@]} - 1))"); fi

job=$(sbatch --parsable --hold "${options[@]}" "$script" "$@")
job=${job%%;*}
if ! "$PYTHON" -m slurm.prepare "$kind" "$job" 0 "$@"; then
  scancel "$job"
  exit 1
fi
scontrol release "$job"
echo "Submitted batch job $job, with its code in $(readlink -f "runs/.jobs/$job")"
