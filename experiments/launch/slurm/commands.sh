# slurm: the commands of a launch
## request
# forget the last exit code
rm -f /shared/runs/digits.job/exit_code
# submit the job
sbatch /shared/runs/digits.job/job.sbatch

## look, every 30 s
# the state in the queue
squeue --noheader --name digits --format %T
# the exit code, once it has ended
cat /shared/runs/digits.job/exit_code

## clear, after a preemption, before the next request (10 at most)
# forget the last exit code
rm -f /shared/runs/digits.job/exit_code

## stop, by hand
# cancel the job
scancel --name digits
