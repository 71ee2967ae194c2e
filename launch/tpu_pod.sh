#!/usr/bin/env bash
# Trains on a spot TPU slice, through queued resources; when the slice is preempted, makes it again and resumes the run.
# Actions: start, watch, status, logs, stop, delete. See launch/README.md.
# shellcheck source=launch/tpu.sh
source "$(dirname "$0")/tpu.sh"

parse "start watch status logs stop delete" "$TPU_OPTIONS poll=60 spot=true fresh=false" "$@"
check_tpu_options

request() {
  local spot=()
  [[ ${OPTION[spot]} != true ]] || spot=(--spot)
  run gcloud compute tpus queued-resources create "${OPTION[name]}" "--node-id=${OPTION[name]}" "${WHERE[@]}" \
    "--accelerator-type=${OPTION[type]}" "--runtime-version=${OPTION[runtime]}" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${spot[@]}"
}

remove() {
  run gcloud compute tpus queued-resources delete "${OPTION[name]}" "${WHERE[@]}" --force --quiet
}

# The slice's state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED and so on; GONE if it does not exist; UNKNOWN without an answer.
state() {
  local answer
  if answer=$(ask ACTIVE gcloud compute tpus queued-resources describe "${OPTION[name]}" "${WHERE[@]}" "--format=value(state.state)" 2>&1); then
    tail -n 1 <<< "$answer"
  elif grep -qiE 'not[ _]?found' <<< "$answer"; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

# The run's state on host 0: running, finished, preempted, failed, absent (not started); unreachable without an answer.
training() {
  ask finished gcloud compute tpus tpu-vm ssh "${OPTION[name]}" "${WHERE[@]}" --worker=0 "--command=
if systemctl is-active --quiet electra_jax; then echo running
elif [ ! -e electra_jax/train.log ]; then echo absent
elif tail -n 5 electra_jax/train.log | grep -qE '^finished at step| is finished: '; then echo finished
elif tail -n 5 electra_jax/train.log | grep -qE '^(preempted|error: this process could not join)'; then echo preempted
else echo failed; fi" || echo unreachable
}

# Runs a command; if it fails, `watch` tries again the next time it looks.
try() {
  "$@" || echo "$(date '+%F %T')  that failed; tried again in ${OPTION[poll]} s"
}

remake() {
  remove && request
}

prepare() {
  install && start_training
}

# The step of the newest checkpoint; empty if there is none, or no answer.
newest() {
  { gcloud storage ls "$WORKDIR/checkpoints/" 2> /dev/null || true; } | { grep -oE '[0-9]+/$' || true; } | sort -n | tail -n 1
}

# Until the run is finished: waits for the slice, starts the run on it, and makes the slice again when it is gone. A run
# that failed is started again, since a host that dies takes the others with it, but at most three times without a new
# checkpoint. After a `start` (--fresh=true), a slice that already exists first gets the code and arguments of that `start`.
watch() {
  local now doing step last=none failures=0
  while true; do
    now=$(state)
    doing=
    [[ $now != ACTIVE ]] || doing=$(training)
    echo "$(date '+%F %T')  slice $now${doing:+, training $doing}"
    if [[ $now == ACTIVE && ${OPTION[fresh]} == true && $doing != unreachable ]]; then
      doing=fresh
    fi
    case $now/$doing in
      ACTIVE/fresh) if prepare; then OPTION[fresh]=false; else try false; fi ;;
      ACTIVE/finished)
        echo "the run is finished; the slice is charged for until it is deleted: $0 delete --name=${OPTION[name]} --zone=${OPTION[zone]}"
        return 0
        ;;
      ACTIVE/absent) try prepare ;;
      ACTIVE/preempted) try start_training ;;
      ACTIVE/failed)
        step=$(newest)
        [[ $step == "$last" ]] || failures=0
        last=$step
        failures=$((failures + 1))
        if [[ $failures -gt 3 ]]; then
          try show_last_lines
          die "the run has failed $failures times without a checkpoint in between: see $0 logs; the slice stays until $0 delete"
        fi
        try start_training
        ;;
      SUSPENDED/ | SUSPENDING/ | FAILED/) try remake ;;
      GONE/) try request ;;
    esac
    [[ $DRY_RUN == 0 ]] || return 0
    sleep "${OPTION[poll]}"
  done
}

# A watch that goes on would start the run again, or an earlier run with its code and arguments.
end_watch() {
  if [[ -f ${OPTION[name]}.watch.pid ]]; then
    run kill "$(cat "${OPTION[name]}.watch.pid")" || true
    run rm "${OPTION[name]}.watch.pid"
  fi
}

show_last_lines() {
  on_hosts 0 "tail -n 5 electra_jax/train.log"
}

case $ACTION in
  start)
    check_start_options
    [[ $DRY_RUN == 0 ]] || request
    end_watch
    OPTION[fresh]=true
    log=${OPTION[name]}.watch.log
    again=("$0" watch)
    for name in "${!OPTION[@]}"; do again+=("--$name=${OPTION[$name]}"); done
    [[ ${#TRAIN_ARGS[@]} == 0 ]] || again+=(-- "${TRAIN_ARGS[@]}")
    printf '+ nohup setsid'; printf ' %q' "${again[@]}"; printf ' > %q &\n' "$log"
    if [[ $DRY_RUN == 1 ]]; then
      install
      start_training
    else
      nohup setsid "${again[@]}" > "$log" 2>&1 &
      echo $! > "${OPTION[name]}.watch.pid"
      echo "this machine watches the run and must stay on: tail -F $log"
    fi
    ;;
  watch)
    check_start_options
    watch
    ;;
  status)
    run gcloud compute tpus queued-resources describe "${OPTION[name]}" "${WHERE[@]}" "--format=value(state.state)"
    on_hosts all "systemctl is-active electra_jax; tail -n 1 electra_jax/train.log"
    ;;
  logs) show_logs ;;
  stop | delete)
    end_watch
    if [[ $ACTION == stop ]]; then stop_training; else remove; fi
    ;;
esac
