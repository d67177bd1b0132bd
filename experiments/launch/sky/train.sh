#!/usr/bin/env bash
# Trains on this host. Exit codes of 128 and more are those of a process that was stopped by a
# signal (143) or lost a peer (142): it resumes from its newest checkpoint. 1 and 2 are errors.
cd "$(dirname "$0")"
: >train.log
tail -n +1 -F train.log &
shows=$!
for restart in $(seq 0 10); do
  environment/bin/dynexit train experiment/digits_vit.py \
    --run "/storage/digits" --cache "/storage/compilation_cache" --coordinator "${SKYPILOT_NODE_IPS%%[[:space:]]*}:8476" --processes "$SKYPILOT_NUM_NODES" --process "$SKYPILOT_NODE_RANK" --start-timeout 900 \
    >>train.log 2>&1
  code=$?
  echo "exit code $code, restart $restart of 10" >>train.log
  if [ "$code" -lt 128 ]; then break; fi
  sleep 10
done
sleep 1
kill "$shows"
exit "$code"
