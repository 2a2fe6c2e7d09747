# Runs a job's ranks to a good or bad end, or puts the job back into the queue. Sourced by the
# scripts that users submit; `launch KIND ARGUMENTS...` is its only entrance.

CODE=${CODE:-$PWD}
source "$CODE/slurm/env.sh"
source "$CODE/slurm/exits.sh"

export RESTARTS_IN_PLACE=${RESTARTS_IN_PLACE:-2} # by torchrun, after a rank's crash
export STOP_SECONDS=${STOP_SECONDS:-110}         # for a save after SIGTERM, before SIGKILL
MOST_FAULTS=${MOST_FAULTS:-3}                    # starts of a job that end at the same checkpoint

say() { echo "$(date '+%F %T') job ${JOB:-}: $*"; }

launch() {
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    describe "$@"
    return
  fi
  JOB=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} TASK=0
  if [[ $1 == sweep ]]; then TASK=${SLURM_ARRAY_TASK_ID:-0}; fi
  ends=$(date -d "$(job_field EndTime)" +%s 2> /dev/null) || ends=
  asked=''
  trap 'on_signal USR1' USR1
  trap 'on_signal TERM' TERM
  prepare "$@"
  [[ $asked != time ]] || requeue "the time limit came before the ranks were started"
  run_ranks
  conclude
}

# Make the job's copy of code and config at its first start, and read what it is to run.
prepare() {
  if [[ $CODE == "$PWD" ]]; then
    "$PYTHON" -m slurm.prepare "$1" "$JOB" "$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE))" "${@:2}"
    CODE=$(readlink -f "runs/.jobs/$JOB")
  fi
  if [[ ! -f $CODE/jobs/$TASK.sh ]]; then
    say "error: the sweep has no setting $TASK: $(find "$CODE/jobs" -name '*.sh' | wc -l) of them, from 0 on"
    exit 1
  fi
  source "$CODE/jobs/$TASK.sh" # FOLDER, RUN, STEPS or OUTPUT, COMMAND
}

# Slurm warns this script with USR1 ahead of the time limit; TERM to the steps lets all ranks save.
# TERM to this script is Slurm's own end of the job: whether it comes back is Slurm's to say, except
# at the time limit.
on_signal() {
  if [[ $1 == USR1 ]] || { [[ -n $ends ]] && (($(date +%s) >= ends - 5)); }; then
    asked=time
  elif [[ -z $asked ]]; then
    asked=end
  fi
  say "$1: the ranks are told to save and end"
  scancel --signal=TERM "$SLURM_JOB_ID" || true
}

run_ranks() {
  ADDRESSES=$(node_addresses | tr '\n' ' ') HEAD_PORT=$(free_port "$SLURM_JOB_ID")
  export CODE PYTHON RANKS_PER_NODE OUTPUT=${OUTPUT:-} ADDRESSES HEAD_PORT
  export LOGS=$RUN/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  mkdir -p "$LOGS/exits" "$(dirname "${OUTPUT:-$LOGS}")"
  say "$SLURM_JOB_NUM_NODES x $RANKS_PER_NODE ranks on $SLURM_JOB_NODELIST: ${COMMAND[*]}"
  say "code $CODE, logs $LOGS"
  # srun has its own idea of the CPUs of a task since Slurm 22.05.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
  # One node's torchrun may end while another's ranks still save: they get their time.
  srun --export=ALL --ntasks-per-node=1 --kill-on-bad-exit=0 --wait="$STOP_SECONDS" \
    bash "$CODE/slurm/node.sh" "${COMMAND[@]}" &
  local steps=$!
  # A signal to this shell interrupts `wait`; srun's code says nothing after one.
  while kill -0 "$steps" 2> /dev/null; do wait "$steps" || true; done
}

conclude() {
  local exit what
  exit=$(first_exit) what=$(meaning "$exit")
  if [[ $what == fault && -z $asked ]]; then fail "$(first_error "$exit")"; fi
  if is_done "$exit"; then
    say "done: ${OUTPUT:+${OUTPUT%.part}}${STEPS:+step $STEPS of $STEPS in $RUN}"
    exit 0
  fi
  if [[ $asked == end ]]; then
    say "ended by Slurm; what was saved is in $RUN"
    exit 143
  fi
  if [[ $asked == time ]]; then requeue "the time limit"; fi
  if [[ $what == stopped || $what == finished ]]; then requeue "the ranks were asked to stop"; fi
  after_loss "$(first_error "$exit")"
}

# Whether the newest checkpoint is that of the last step, or all ranks have done their part.
is_done() {
  if [[ -n ${OUTPUT:-} ]]; then
    local ended
    ended=$(find "$LOGS/exits" -name "${1%%.*}.*.0" | wc -l)
    ((ended == SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) && mv "$OUTPUT" "${OUTPUT%.part}"
    return
  fi
  local newest
  newest=$(newest_checkpoint)
  [[ $newest == step_* ]] && ((10#${newest#step_} >= STEPS))
}

newest_checkpoint() { cat "$RUN/checkpoints/latest" 2> /dev/null || echo none; }

# Some rank is gone. If its node is, Slurm will take the job away and put it back: wait for that.
after_loss() {
  local until=$((SECONDS + 600)) faults=$RUN/logs/faults
  say "$1"
  while ((SECONDS < until)); do
    if timeout 30 srun --overlap --ntasks-per-node=1 true 2> /dev/null; then break; fi
    say "a node does not answer; Slurm requeues the job when it knows"
    sleep 10
  done
  # Weeks have many faults. What counts is whether the run gets on from one to the next.
  echo "$JOB.$TASK $(newest_checkpoint)" >> "$faults"
  if (($(tail -n "$MOST_FAULTS" "$faults" | grep -cxF "$(tail -n 1 "$faults")") >= MOST_FAULTS)); then
    fail "$MOST_FAULTS times in a row at the same checkpoint, $(newest_checkpoint): $1"
  fi
  requeue "a rank was lost"
}

requeue() {
  say "$1: back into the queue, to go on from checkpoint $(newest_checkpoint)"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

fail() {
  say "error: $1"
  say "logs of all ranks: $LOGS; stacks, if any: $RUN/failures"
  exit 1
}

job_field() { scontrol show job "$SLURM_JOB_ID" -o | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }

# Without Slurm: what the job would do.
describe() {
  local jobs
  jobs=$("$PYTHON" -m slurm.prepare "$1" - "$((${NODES:-1} * RANKS_PER_NODE))" "${@:2}")
  eval "$jobs"
  cat << END
not under Slurm, nothing is run. sbatch slurm/$1.sh ${*:2}
  runs    ${COMMAND[*]}
  on      $RANKS_PER_NODE ranks a node, $OMP_NUM_THREADS threads each; nodes: sbatch --nodes N
  until   ${OUTPUT:+${OUTPUT%.part} is written}${STEPS:+step $STEPS; a requeued job goes on from the newest checkpoint}
  code    $FOLDER/code/JOB, copied at the job's first start (bash slurm/submit.sh copies at once)
  logs    $RUN/logs/JOB.RESTART/rank-N.log; rank 0's also in the job's output
END
  [[ -z ${MISSING:-} ]] || echo "  missing $MISSING: not on this machine, and the job would fail without"
  if [[ $1 == sweep ]]; then
    echo "  settings, for sbatch --array 0-$((${#SETTINGS[@]} - 1)) slurm/sweep.sh ...:"
    for i in "${!SETTINGS[@]}"; do echo "    $i  ${SETTINGS[i]}"; done
  fi
}
