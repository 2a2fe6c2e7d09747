#!/usr/bin/env bash
# One node of a job, started by srun: torchrun, and under it this node's ranks (rank.sh).
# Arguments: a module and its arguments.
set -euo pipefail
source "$CODE/slurm/env.sh"
read -ra addresses <<< "$ADDRESSES"
is_head=$((SLURM_NODEID == 0))
set_interfaces "${addresses[is_head]:-${addresses[0]}}"

# The code is the job's copy, wherever the job stands and whatever is installed.
export PYTHONPATH=$CODE${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

# When torchrun 2.13 starts ranks again it gives them the store of before, full of addresses that are
# no more, unless told to give them a new one; the static rendezvous cannot do that at all.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# exec, because Slurm signals only the process that srun started.
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$RANKS_PER_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "${addresses[0]}:$HEAD_PORT" --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-conf "is_host=$is_head" --local-addr "${addresses[SLURM_NODEID]}" \
  --max-restarts "$RESTARTS_IN_PLACE" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  --shutdown-timeout "$STOP_SECONDS" \
  --no-python bash "$CODE/slurm/rank.sh" "$@" 2>> "$LOGS/node-$SLURM_NODEID.log"
