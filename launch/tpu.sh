# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use what it sets
# Shared by tpu_vm.sh and tpu_pod.sh: what is done on the TPU's hosts, the same on all. Sourced, not run.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TPU_OPTIONS="name= zone= type= bucket= config= project= runtime= data= commit="

check_tpu_options() {
  require name "a name for the TPU"
  require zone "such as us-central2-b; see gcloud compute tpus locations list"
  need gcloud "see https://cloud.google.com/sdk/docs/install"
  if [[ -z ${OPTION[project]} ]]; then
    OPTION[project]=$(ask MY_PROJECT gcloud config get-value project)
    [[ -n ${OPTION[project]} ]] || die "no project: give --project=..., or set one with gcloud config set project ..."
  fi
  WHERE=("--zone=${OPTION[zone]}" "--project=${OPTION[project]}")
}

check_start_options() {
  require type "such as v5litepod-16; see gcloud compute tpus accelerator-types list --zone=${OPTION[zone]}"
  require bucket "gs://..., for the work directory"
  require config "such as configs/small.py"
  # Fixed here: a slice that is made again gets the same code, whatever has been committed in the meantime.
  local wanted=${OPTION[commit]:-HEAD}
  OPTION[commit]=$(git -C "$ROOT" rev-parse --verify --quiet "$wanted^{commit}") || die "--commit=$wanted: git does not know it"
  git -C "$ROOT" cat-file -e "${OPTION[commit]}:${OPTION[config]%%:*}" 2> /dev/null \
    || die "--config=${OPTION[config]}: no such file in commit ${OPTION[commit]:0:12}, which is what the hosts get; commit it"
  [[ -z $(git -C "$ROOT" status --porcelain) ]] || echo "note: the hosts get commit ${OPTION[commit]:0:12}, without uncommitted changes"
  check_bucket "${OPTION[bucket]}" "${OPTION[zone]}"
  if [[ -z ${OPTION[runtime]} ]]; then
    case ${OPTION[type]} in
      v6e-*) OPTION[runtime]=v2-alpha-tpuv6e ;;
      v5p-*) OPTION[runtime]=v2-alpha-tpuv5 ;;
      v5litepod-*) OPTION[runtime]=v2-alpha-tpuv5-lite ;;
      *) OPTION[runtime]=tpu-ubuntu2204-base ;;
    esac
  fi
  WORKDIR=${OPTION[bucket]%/}/${OPTION[name]}
}

# on_hosts WORKER COMMAND: WORKER is a number or `all`.
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "${OPTION[name]}" "${WHERE[@]}" "--worker=$1" "--command=$2"
}

# Installs the code on every host. The images bring Python 3.10; uv brings 3.12.
install() {
  local code=/tmp/electra_jax-${OPTION[name]}.tar.gz
  pack_code "$code" "${OPTION[commit]}" \
    && run gcloud compute tpus tpu-vm scp "$code" "${OPTION[name]}:electra_jax.tar.gz" "${WHERE[@]}" --worker=all \
    && on_hosts all "sudo systemctl stop electra_jax 2> /dev/null || true
set -e
mkdir -p electra_jax && tar -xzf electra_jax.tar.gz -C electra_jax && cd electra_jax
command -v \$HOME/.local/bin/uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
\$HOME/.local/bin/uv venv --quiet --clear --python 3.12 .venv
\$HOME/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs]'
${OPTION[data]:+gcloud storage rsync --recursive ${OPTION[data]} corpus}"
}

# A systemd unit on every host: it outlives the connection, and a shutdown sends it SIGTERM and waits for it.
start_training() {
  # Where the process of one host has died, the units of the others may still be up. Each start gets a new log, since
  # `tpu_pod.sh watch` reads from it how the run ended.
  on_hosts all "sudo systemctl stop electra_jax 2> /dev/null; sudo systemctl reset-failed electra_jax 2> /dev/null
[ ! -e electra_jax/train.log ] || mv electra_jax/train.log electra_jax/train.before.log" || return
  local train=(.venv/bin/python -u -m electra_jax.train "--config=${OPTION[config]}" "--workdir=$WORKDIR" "${TRAIN_ARGS[@]}")
  on_hosts all "cd electra_jax && sudo systemd-run --unit=electra_jax --property=After=network-online.target \
--property=LimitMEMLOCK=infinity --uid=\$(id -u) --working-directory=\$PWD --property=KillSignal=SIGTERM --property=KillMode=mixed --property=TimeoutStopSec=120 \
--property=StandardOutput=append:\$PWD/train.log --property=StandardError=append:\$PWD/train.log \
--setenv=HOME=\$HOME --setenv=JAX_COMPILATION_CACHE_DIR=${OPTION[bucket]%/}/compilation_cache $(quoted "${train[@]}")"
}

show_logs() {
  on_hosts 0 "tail -n 100 -F electra_jax/train.log"
}

# SIGTERM on one host is enough, but all units are to end.
stop_training() {
  on_hosts all "sudo systemctl stop electra_jax; tail -n 1 electra_jax/train.log"
}

# exists COMMAND...: whether a `describe` command finds its resource; any failure other than 'not found' ends the script.
exists() {
  local answer
  if [[ $DRY_RUN == 1 ]]; then ask "" "$@"; return 1; fi
  if answer=$("$@" 2>&1); then return 0; fi
  grep -qiE 'not[ _]?found' <<< "$answer" || die "$(head -n 1 <<< "$answer")"
  return 1
}
