#!/usr/bin/env bash
# Trains on one TPU VM (or a slice that is available at once): start, status, logs, stop, delete. See launch/README.md.
# shellcheck source=launch/tpu.sh
source "$(dirname "$0")/tpu.sh"

parse "start status logs stop delete" "$TPU_OPTIONS" "$@"
check_tpu_options
case $ACTION in
  start)
    check_start_options
    # Created only once: a start after a stop or a reboot uses the VM that is there.
    exists gcloud compute tpus tpu-vm describe "${OPTION[name]}" "${WHERE[@]}" || run gcloud compute tpus tpu-vm create "${OPTION[name]}" "${WHERE[@]}" "--accelerator-type=${OPTION[type]}" \
      "--version=${OPTION[runtime]}" --scopes=https://www.googleapis.com/auth/cloud-platform
    install
    start_training
    echo "started; follow it with: $0 logs --name=${OPTION[name]} --zone=${OPTION[zone]}"
    ;;
  status)
    run gcloud compute tpus tpu-vm describe "${OPTION[name]}" "${WHERE[@]}" "--format=value(state,health)"
    on_hosts all "systemctl is-active electra_jax; tail -n 1 electra_jax/train.log"
    ;;
  logs) show_logs ;;
  stop) stop_training ;;
  delete) run gcloud compute tpus tpu-vm delete "${OPTION[name]}" "${WHERE[@]}" --quiet ;;
esac
