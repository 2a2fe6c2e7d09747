#!/usr/bin/env bash
# Train once for each setting of a file, each in a run folder of its own, as an array of jobs:
#   sbatch --array 0-5 --nodes 1 slurm/sweep.sh configs/pretrain/x.yaml SETTINGS key=value ...
# A line of SETTINGS is a setting, such as optim.lr=1e-3 batch.global_size=64; with braces, as in
# optim.lr={1e-3,3e-4}, one for each combination. Without Slurm it numbers them:
#   bash slurm/sweep.sh configs/pretrain/x.yaml SETTINGS key=value ...
#
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
set -euo pipefail
# Under Slurm $0 is a copy in the spool folder. A requeued job finds its own code through the link.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
CODE=$(readlink -e "runs/.jobs/${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-none}}" || pwd)
source "$CODE/slurm/launch.sh"
launch sweep "$@"
