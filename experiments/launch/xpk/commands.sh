# xpk: the commands of a launch
## request
# add the job folder to the image, and submit the workload
xpk workload create --workload digits --cluster my-cluster --zone us-west4-a --tpu-type v5litepod-16 --num-slices 1 --storage my-storage --priority medium --max-restarts 10 --termination-grace-period-seconds 120 --base-docker-image python:3.12 --script-dir runs/digits.job --command 'exec bash start.sh'

## look, every 30 s
# the state of the workload
xpk workload list --cluster my-cluster --zone us-west4-a --filter-by-job digits

## bring back, when training has ended
# make the folder here
mkdir -p runs/digits
# bring the run folder
gcloud storage rsync --recursive gs://my-bucket/digits runs/digits

## clear, after a preemption, before the next request (10 at most)
# delete the workload
xpk workload delete --workload digits --cluster my-cluster --zone us-west4-a --force

## stop, by hand
# delete the workload
xpk workload delete --workload digits --cluster my-cluster --zone us-west4-a --force
