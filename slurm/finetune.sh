#!/usr/bin/env bash
# Go on training a finished model (init_from) with layer dropout and exit loss:
#   sbatch --nodes 2 slurm/finetune.sh configs/pretrain/x.yaml model=null init_from=FOLDER key=value ...
# Without Slurm it says what it would do:
#   bash slurm/finetune.sh configs/pretrain/x.yaml model=null init_from=FOLDER key=value ...
#
#SBATCH --job-name=finetune
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
launch finetune "$@"
