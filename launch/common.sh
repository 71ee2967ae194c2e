# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use what it sets
# What the launch scripts share. Sourced, not run.
#
#   SCRIPT ACTION [--option=value ...] [-- arguments of electra_jax.train ...]

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=0
TRAIN_ARGS=()
declare -A OPTION

# Prints a one-line error and exits with the status for bad input.
die() {
  echo "error: $*" >&2
  exit 2
}

# Shows a command and runs it; with --dry_run, only shows it.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  if [[ $DRY_RUN == 0 ]]; then "$@"; fi
}

# ask GOOD COMMAND...: prints what the command prints; with --dry_run only shows the command, and prints GOOD as its answer.
ask() {
  local good=$1
  shift
  if [[ $DRY_RUN == 1 ]]; then
    { printf '+'; printf ' %q' "$@"; printf '\n'; } >&2
    echo "$good"
  else
    "$@"
  fi
}

need() {
  [[ $DRY_RUN == 1 ]] || command -v "$1" > /dev/null || die "$1 is not installed here; $2"
}

# parse "ACTIONS" "OPTION=default OPTION= ..." "$@": sets ACTION, OPTION and TRAIN_ARGS. `require` checks what must be given.
parse() {
  local actions=$1 known=$2 pair name
  shift 2
  for pair in $known; do OPTION[${pair%%=*}]=${pair#*=}; done
  ACTION=${1:-}
  [[ " $actions " == *" $ACTION "* && -n $ACTION ]] || die "the first argument must be one of: $actions (it is '${1:-}'); see launch/README.md"
  shift
  while [[ $# -gt 0 ]]; do
    case $1 in
      --dry_run) DRY_RUN=1 ;;
      --) shift; TRAIN_ARGS=("$@"); break ;;
      --*=*)
        name=${1%%=*}
        name=${name#--}
        [[ -v OPTION[$name] ]] || die "$1: no such option; known are --dry_run and: ${!OPTION[*]}"
        OPTION[$name]=${1#*=}
        ;;
      *) die "$1: write --option=value; arguments of electra_jax.train follow after --" ;;
    esac
    shift
  done
}

# require NAME "what it is": ends the script if this option is empty.
require() {
  [[ -n ${OPTION[$1]} ]] || die "--$1=... is missing: $2"
}

# The bucket must exist and lie where the machines are: across regions, saving is slow and traffic is charged.
check_bucket() {
  local bucket=$1 zone=$2 region location
  [[ $bucket == gs://* ]] || die "--bucket=$bucket must be gs://NAME or gs://NAME/PATH"
  region=${zone%-*}
  location=$(ask "${region^^}" gcloud storage buckets describe "gs://$(cut -d/ -f3 <<< "$bucket")" --format='value(location)') \
    || die "--bucket=$bucket cannot be read; make it with: gcloud storage buckets create $bucket --location=$region"
  case ${location^^}/$region in
    "${region^^}"/*) ;;
    US/us-* | EU/europe-* | ASIA/asia-* | NAM[0-9]*/us-* | EUR[0-9]*/europe-* | ASIA[0-9]*/asia-*) ;; # multi-region buckets
    *) die "--bucket=$bucket is in ${location,,}, --zone=$zone in $region: use a bucket in $region" ;;
  esac
}

# pack_code FILE COMMIT: the code as it stands in git, for the machines.
pack_code() {
  run git -C "$ROOT" archive --format=tar.gz --output="$1" "$2"
}

# A command line quoted for a shell on another machine.
quoted() {
  printf '%q ' "$@"
}
