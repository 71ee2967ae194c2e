#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster as a JobSet: start, status, logs, stop. See launch/README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

parse "start status logs stop" \
  "name= image= bucket= zone= config= accelerator=tpu-v5-lite-podslice topology=4x4 chips=4 slices=1 spot=true service_account=default" "$@"
require name "a name for the JobSet"
need kubectl "see https://kubernetes.io/docs/tasks/tools"

chips_of() {
  local product=1 part
  for part in ${1//x/ }; do product=$((product * part)); done
  echo "$product"
}

# The manifest, with everything filled in.
manifest() {
  local train hosts chips
  train=$(quoted python -m electra_jax.train "--config=${OPTION[config]}" "--workdir=${OPTION[bucket]%/}/${OPTION[name]}" "${TRAIN_ARGS[@]}" | sed 's/[&|\\]/\\&/g') # escapes what is special to sed
  chips=$(chips_of "${OPTION[topology]}")
  hosts=$((chips / OPTION[chips]))
  sed -e "s|@NAME@|${OPTION[name]}|" -e "s|@IMAGE@|${OPTION[image]}|" -e "s|@SLICES@|${OPTION[slices]}|" -e "s|@HOSTS@|$hosts|" \
    -e "s|@CHIPS@|${OPTION[chips]}|" -e "s|@ACCELERATOR@|${OPTION[accelerator]}|" -e "s|@TOPOLOGY@|${OPTION[topology]}|" \
    -e "$([[ ${OPTION[spot]} == true ]] || echo '/gke-spot: "true"/d')" -e "s|@SERVICE_ACCOUNT@|${OPTION[service_account]}|" \
    -e "s|@CACHE@|${OPTION[bucket]%/}/compilation_cache|" -e "s|@TRAIN@|$train|" "$ROOT/launch/jobset.yaml"
}

case $ACTION in
  start)
    require image "built from launch/Dockerfile and pushed"
    require bucket "gs://..., for the work directory"
    require zone "of the cluster's TPU nodes, such as us-central1-a"
    require config "such as configs/small.py"
    [[ -f $ROOT/${OPTION[config]%%:*} ]] || die "--config=${OPTION[config]}: no such file under $ROOT"
    need gcloud "see https://cloud.google.com/sdk/docs/install"
    check_bucket "${OPTION[bucket]}" "${OPTION[zone]}"
    ask found kubectl get crd jobsets.jobset.x-k8s.io > /dev/null \
      || die "the cluster knows no JobSets; install them: https://jobset.sigs.k8s.io/docs/installation"
    [[ -n $(ask node kubectl get nodes --selector="cloud.google.com/gke-tpu-topology=${OPTION[topology]}" --output=name) ]] \
      || echo "note: no node with topology ${OPTION[topology]} is up; the pods wait until the node pool has one"
    [[ $(($(chips_of "${OPTION[topology]}") % OPTION[chips])) == 0 ]] \
      || die "--topology=${OPTION[topology]}: its chips are not a multiple of --chips=${OPTION[chips]}, the chips per host"
    file=${OPTION[name]}.jobset.yaml
    if [[ $DRY_RUN == 1 ]]; then manifest; else manifest > "$file"; fi
    run kubectl apply --filename="$file"
    ;;
  status) run kubectl get jobset,pods --selector="jobset.sigs.k8s.io/jobset-name=${OPTION[name]}" --output=wide ;;
  logs)
    run kubectl logs --follow --tail=100 \
      --selector="jobset.sigs.k8s.io/jobset-name=${OPTION[name]},batch.kubernetes.io/job-completion-index=0"
    ;;
  stop) run kubectl delete jobset "${OPTION[name]}" ;; # SIGTERM to every pod: the run saves
esac
