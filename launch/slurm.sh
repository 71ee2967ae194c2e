#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, a process a GPU: start, status, logs, stop. See launch/README.md.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

parse "start status logs stop" "name=electra_jax nodes=1 gpus=8 cpus=8 time=24:00:00 partition= account= config= workdir= python=.venv/bin/python" "$@"

# The job itself, as a script on standard output.
job() {
  local train workdir=${OPTION[workdir]}
  train=$(quoted "${OPTION[python]}" -u -m electra_jax.train "--config=${OPTION[config]}" "--workdir=$workdir" "${TRAIN_ARGS[@]}")
  cat << SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=${OPTION[name]}
#SBATCH --nodes=${OPTION[nodes]}
#SBATCH --ntasks-per-node=${OPTION[gpus]}
#SBATCH --gpus-per-node=${OPTION[gpus]}
#SBATCH --cpus-per-task=${OPTION[cpus]}
#SBATCH --time=${OPTION[time]}
#SBATCH --output=$workdir/slurm.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time is up, and when the job is preempted: every task gets SIGTERM, saves and ends.
#SBATCH --signal=TERM@120
${OPTION[partition]:+#SBATCH --partition=${OPTION[partition]}}
${OPTION[account]:+#SBATCH --account=${OPTION[account]}}
# The run was stopped while this job waited in the queue.
if [ -e $(quoted "$workdir/stop") ]; then rm $(quoted "$workdir/stop"); exit 0; fi
cd $(quoted "$ROOT") || exit 2
export JAX_COMPILATION_CACHE_DIR="\${JAX_COMPILATION_CACHE_DIR:-$(dirname "$workdir")/compilation_cache}"
before=\$(wc -c < $(quoted "$workdir/slurm.log"))
srun --kill-on-bad-exit=1 --cpus-per-task=${OPTION[cpus]} $train
status=\$?
# A run that was preempted goes on in a job of the same number, unless it was told to stop.
if [ \$status = 0 ] && tail -c +\$((before + 1)) $(quoted "$workdir/slurm.log") | grep -q '^preempted'; then
  if [ -e $(quoted "$workdir/stop") ]; then rm $(quoted "$workdir/stop"); else scontrol requeue "\$SLURM_JOB_ID"; fi
fi
exit \$status
SCRIPT
}

# The number of the run's job, as written down by `start`.
the_job() {
  if [[ $DRY_RUN == 1 ]]; then echo JOB; else cat "${OPTION[workdir]}/slurm.job"; fi
}

case $ACTION in
  start)
    require config "such as configs/small.py"
    require workdir "a directory that all nodes share"
    need sbatch "run this on a login node"
    need srun "run this on a login node"
    file=${OPTION[config]%%:*}
    # The job runs in $ROOT.
    [[ $file == /* || -f $ROOT/$file ]] || OPTION[config]=$PWD/${OPTION[config]}
    [[ -f $file || -f $ROOT/$file ]] || die "--config=$file: no such file"
    if [[ $DRY_RUN == 0 ]]; then
      (cd "$ROOT" && "${OPTION[python]}" -c 'import electra_jax') 2> /dev/null \
        || die "--python=${OPTION[python]} has no electra_jax: python3.12 -m venv .venv && .venv/bin/pip install -e '.[cuda]' in $ROOT"
    fi
    [[ ${OPTION[workdir]} == /* && ${OPTION[workdir]} != *' '* ]] \
      || die "--workdir=${OPTION[workdir]} must be an absolute path without spaces, which all nodes share"
    run mkdir -p "${OPTION[workdir]}"
    script=${OPTION[workdir]}/slurm.sh
    if [[ $DRY_RUN == 1 ]]; then
      job
      run sbatch --parsable "$script"
    else
      if [[ -f ${OPTION[workdir]}/slurm.job && -n $(squeue --noheader --jobs="$(the_job)" 2> /dev/null) ]]; then
        die "--workdir=${OPTION[workdir]}: its job $(the_job) waits or runs; $0 stop --workdir=... first"
      fi
      rm -f "${OPTION[workdir]}/stop"
      job > "$script"
      echo "+ sbatch --parsable $script"
      sbatch --parsable "$script" | tee "${OPTION[workdir]}/slurm.job"
    fi
    ;;
  status)
    require workdir "of the run"
    run squeue --jobs="$(the_job)" --format="%i %T %M %l %R"
    ;;
  logs)
    require workdir "of the run"
    run tail -n 100 -F "${OPTION[workdir]}/slurm.log"
    ;;
  stop)
    require workdir "of the run"
    # The signal goes to the tasks, not to the script: they save and end, and the script finds `stop` and does not requeue.
    run touch "${OPTION[workdir]}/stop"
    run scancel --state=PENDING "$(the_job)" # a pending job, which no signal would reach
    run scancel --signal=TERM "$(the_job)" || true # fails for a pending job
    ;;
esac
