# How the ranks of a job ended. Sourced; LOGS names the logs of one start of the job.
#
# rank.sh leaves an empty file LOGS/exits/ATTEMPT.RANK.CODE when a rank ends: an empty file can be
# made on a full disk too. ATTEMPT is a number that the ranks have in common each time that torchrun
# starts them: the port of their store.

# ATTEMPT.RANK.CODE of the rank that ended first in the last attempt in which one did; or nothing.
first_exit() {
  local last
  last=$(exits_by_time "*" | tail -n 1)
  exits_by_time "${last%%.*}" | sed -n 1p
}

exits_by_time() {
  find "$LOGS/exits" -name "$1.*.*" -printf '%T@ %f\n' | sort -n | sed 's/.* //'
}

# What an exit says: finished, stopped, fault (starting again would not help) or lost (it may).
meaning() {
  case ${1##*.} in
    0) echo finished ;;
    143 | 138) echo stopped ;; # by SIGTERM or SIGUSR1 before it could save
    1 | 2 | 130) echo fault ;;
    *) echo lost ;;
  esac
}

# One line for the rank that ended first: who, how, and what it said.
first_error() {
  local exit=$1 rank code said report
  if [[ -z $exit ]]; then
    echo "no rank could say how it ended: a node is gone, or torchrun failed (see the logs of nodes)"
    return
  fi
  rank=${exit#*.} code=${exit##*.} rank=${rank%.*}
  said=$(grep -h 'error: ' "$LOGS/rank-$rank.log" 2> /dev/null | tail -n 1) || true
  report=${LOGS%/logs/*}/failures/rank-$rank.txt # has room kept for it where logs have none any more
  if [[ -z $said && $report -nt $LOGS ]]; then
    said=$(sed -n 's/^reason: //p' "$report" | tail -n 1)
  fi
  if [[ -z $said ]] && ((code > 128)); then
    said="ended by signal $((code - 128)), without a word: killed from outside, or out of memory"
  fi
  echo "rank $rank ended first, with code $code: ${said:-it said nothing}"
}
