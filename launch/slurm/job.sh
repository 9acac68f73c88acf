# Sourced by the scripts of launch/slurm in a job: `in_all_tasks COMMAND...` runs it once for each task, and knows what
# to do at the time limit. What the site needs is in the variables of launch/slurm/site/example.env.

# A container's own python is the right one; it runs the code of this folder.
if [ -n "${CONTAINER:-}" ]; then export VENV= PYTHONPATH="$PWD"; fi
source launch/slurm/env.sh

# Pyxis, a plugin of Slurm, starts tasks in a container: CONTAINER is an image (docker://..., or a .sqsh file).
container=()
if [ -n "${CONTAINER:-}" ]; then
    container=(--container-image="$CONTAINER" --container-mounts="$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}"
               --container-workdir="$PWD" --no-container-mount-home)
fi

requeue=false
on_time_limit() {
    requeue=true interrupted=true
    scancel --signal=TERM "$SLURM_JOB_ID" || true
}

# The exit code of the command is that of the job; before the time limit all tasks get SIGTERM, and where they end well,
# or by it, the job goes back into the queue: the same command resumes.
in_all_tasks() {
    trap on_time_limit TERM
    # srun does not take over sbatch's --cpus-per-task by itself. A process that dies ends the others, which would wait.
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 ${container[@]+"${container[@]}"} "$@" &
    # A signal interrupts `wait`, and the processes go on for a while.
    interrupted=true
    while [ "$interrupted" = true ]; do
        interrupted=false code=0
        wait $! || code=$?
    done
    # 75: nothing moved any more (train.hang_minutes).
    if [ "$code" -eq 75 ]; then requeue=true; fi
    # 137, 134: a task was killed, by its node or for want of memory, and JAX aborted those that waited for it. What dies
    # soon after its start would die again.
    if { [ "$code" -eq 137 ] || [ "$code" -eq 134 ]; } && [ "$SECONDS" -ge "${REQUEUE_KILLED_AFTER:-600}" ]; then
        requeue=true
    fi
    # A job that somebody cancelled or queued again gets the same signals, but is no longer running.
    if [ "$requeue" = true ] && [[ " 0 75 134 137 143 " == *" $code "* ]] &&
        [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID" || echo "saved; submit the same command again to resume"
    fi
    exit "$code"
}
