#!/usr/bin/env bash
# Trains on this machine's GPUs, detached: start, status, logs, stop. See launch/README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

parse "start status logs stop" "config= workdir= python=python3" "$@"
require workdir "where everything about the run goes"
LOG=${OPTION[workdir]}/train.log
PID=${OPTION[workdir]}/train.pid

is_running() {
  [[ -f $PID ]] && kill -0 "$(cat "$PID")" 2> /dev/null
}

case $ACTION in
  start)
    require config "such as configs/small.py"
    [[ -f ${OPTION[config]%%:*} ]] || die "--config=${OPTION[config]}: no such file"
    need nvidia-smi "this needs an NVIDIA driver"
    ! is_running || die "--workdir=${OPTION[workdir]}: a run is going on there, process $(cat "$PID")"
    version=$(ask 3.12 "${OPTION[python]}" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "--python=${OPTION[python]} does not run"
    [[ ${version#3.} -ge 11 ]] || die "--python=${OPTION[python]} is $version; 3.11 or newer is needed, 3.12 is faster"
    run nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
    driver=$(ask 580 nvidia-smi --query-gpu=driver_version --format=csv,noheader)
    extra=cuda
    [[ ${driver%%.*} -ge 580 ]] || extra=cuda12
    # An environment made for the CPU would silently train on the CPU.
    if ! (cd "$ROOT" && .venv/bin/python -c 'import electra_jax, pkgutil, jax_plugins
assert any("cuda" in module.name for module in pkgutil.iter_modules(jax_plugins.__path__))') 2> /dev/null; then
      [[ -x $ROOT/.venv/bin/python ]] || run "${OPTION[python]}" -m venv "$ROOT/.venv"
      run "$ROOT/.venv/bin/pip" install --quiet --editable "${ROOT}[$extra]"
    fi
    run mkdir -p "${OPTION[workdir]}"
    train=("$ROOT/.venv/bin/python" -u -m electra_jax.train "--config=${OPTION[config]}" "--workdir=${OPTION[workdir]}" "${TRAIN_ARGS[@]}")
    # In a session of its own: it outlives the terminal, and a shutdown sends it SIGTERM like everything else.
    printf '+ setsid nohup'; printf ' %q' "${train[@]}"; printf ' >> %q 2>&1 &\n' "$LOG"
    if [[ $DRY_RUN == 0 ]]; then
      setsid nohup "${train[@]}" >> "$LOG" 2>&1 < /dev/null &
      echo $! > "$PID"
      echo "started; follow it with: $0 logs --workdir=${OPTION[workdir]}"
    fi
    ;;
  status)
    if is_running; then echo "running, process $(cat "$PID")"; else echo "not running"; fi
    run tail -n 1 "$LOG"
    ;;
  logs) run tail -n 100 -F "$LOG" ;;
  stop)
    is_running || die "--workdir=${OPTION[workdir]}: no run is going on there"
    run kill -TERM "$(cat "$PID")" # it saves and ends; the same start goes on from there
    ;;
esac
