# tpu: the commands of a launch
## request
# request the TPU
gcloud compute tpus queued-resources create digits --node-id digits --zone us-west4-a --accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite

## look, every 30 s
# the state of the request
gcloud compute tpus queued-resources describe digits --zone us-west4-a --format 'value(state.state)'
# the state of training
gcloud compute tpus tpu-vm ssh digits --zone us-west4-a --worker all --command 'cd digits.job 2>/dev/null || { echo "dynexit-state ready"; exit 0; }; if [ -f exit_code ]; then echo "dynexit-state $(cat exit_code)"; elif [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "dynexit-state running $(tail -c 400 train.log 2>/dev/null | tr '"'"'\r'"'"' '"'"'\n'"'"' | tail -n 1)"; else echo "dynexit-state ready"; fi'

## start, when the hosts are ready
# pack the job folder
tar -czf runs/digits.job.tar.gz --exclude logs -C runs digits.job
# copy it to all hosts
gcloud compute tpus tpu-vm scp runs/digits.job.tar.gz digits: --zone us-west4-a --worker all
# prepare all hosts
gcloud compute tpus tpu-vm ssh digits --zone us-west4-a --worker all --command 'tar -xzf digits.job.tar.gz && bash digits.job/setup.sh'
# start training on all hosts
gcloud compute tpus tpu-vm ssh digits --zone us-west4-a --worker all --command 'nohup setsid bash digits.job/train.sh >/dev/null 2>&1 </dev/null & sleep 2'

## bring back, when training has ended
# make the folders here
mkdir -p runs/digits runs/digits.job/logs
# bring the run folder
gcloud storage rsync --recursive gs://my-bucket/runs/digits runs/digits
# bring the log of the first host
gcloud compute tpus tpu-vm scp digits:digits.job/train.log runs/digits.job/logs --zone us-west4-a --worker 0

## end, after that
# delete the TPU and its request
gcloud compute tpus queued-resources delete digits --zone us-west4-a --force --quiet

## clear, after a preemption, before the next request (10 at most)
# delete the TPU and its request
gcloud compute tpus queued-resources delete digits --zone us-west4-a --force --quiet

## stop, by hand
# delete the TPU and its request
gcloud compute tpus queued-resources delete digits --zone us-west4-a --force --quiet
