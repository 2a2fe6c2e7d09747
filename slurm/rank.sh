#!/usr/bin/env bash
# One rank of a job, started by torchrun: its output goes to a log of its own, rank 0's also to the
# job's, and a file says how it ended (exits.sh). Arguments: a module and its arguments.
#
# torchrun signals the whole process group, so this shell only has to outlive its child.
set -uo pipefail
trap : TERM INT HUP QUIT USR1
source "$CODE/slurm/exits.sh"
log=$LOGS/rank-$RANK.log

# tee has to outlive the signals too, or the rank's last words would be lost.
if ((RANK == 0)); then
  exec 2> >(trap '' TERM INT HUP QUIT USR1 && exec tee -a "$log")
else
  exec 2>> "$log"
fi
echo "== rank $RANK of $WORLD_SIZE on ${SLURMD_NODENAME:-this machine}, $(date '+%F %T')" >&2

before=$(first_exit)
if [[ -n $before ]]; then
  # What is wrong by itself would only go wrong again: let torchrun come to its end.
  [[ $(meaning "$before") != fault ]] || exit 1
  ((RANK > 0)) || echo "starting again in place: $(first_error "$before")" >&2
fi

if ((RANK == 0)) && [[ -n ${OUTPUT:-} ]]; then
  "$PYTHON" -u -m "$@" > "$OUTPUT"
else
  "$PYTHON" -u -m "$@" >&2
fi
code=$?
: > "$LOGS/exits/$MASTER_PORT.$RANK.$code"
exit "$code"
