# sky: the commands of a launch
## request
# submit the job
sky jobs launch --name digits --yes --detach-run runs/digits.job/task.yaml

## look, every 30 s
# the state of the job
sky jobs queue --all --output json

## bring back, when training has ended
# make the folder here
mkdir -p runs/digits
# bring the run folder
gcloud storage rsync --recursive gs://my-bucket/digits runs/digits

## stop, by hand
# cancel the job
sky jobs cancel --name digits --yes
