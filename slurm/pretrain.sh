#!/usr/bin/env bash
# Train on one or more nodes; submit it from the repository's root:
#   sbatch --nodes 2 slurm/pretrain.sh configs/pretrain/x.yaml key=value ...
# Without Slurm it says what it would do:
#   bash slurm/pretrain.sh configs/pretrain/x.yaml key=value ...
#
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
set -euo pipefail
# Under Slurm $0 is a copy in the spool folder. A requeued job finds its own code through the link.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
CODE=$(readlink -e "runs/.jobs/${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-none}}" || pwd)
source "$CODE/slurm/launch.sh"
launch pretrain "$@"
