#!/usr/bin/env bash
# Continue a file of prompts on all ranks of a job; MODEL is a run, a checkpoint or a model's folder:
#   sbatch --nodes 2 slurm/generate.sh MODEL prompts=FILE key=value ...
# The texts, one JSON object a line, are in MODEL/generated/JOB.jsonl or, if MODEL is no folder, in
# runs/generated/JOB.jsonl; or in FILE, with to=FILE.
# Without Slurm it says what it would do:
#   bash slurm/generate.sh MODEL prompts=FILE key=value ...
#
#SBATCH --job-name=generate
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
launch generate "$@"
