#!/usr/bin/env bash
# Trains on this host. Exit codes of 128 and more are those of a process that was stopped by a
# signal (143) or lost a peer (142): it resumes from its newest checkpoint. 1 and 2 are errors.
cd "$(dirname "$0")"
exec 9>lock
flock -n 9 || exit 0 # it runs already
echo $$ >pid
rm -f exit_code
for restart in $(seq 0 10); do
  environment/bin/dynexit train experiment/digits_vit.py \
    --run "$HOME/storage/runs/digits" --cache "$HOME/storage/runs/compilation_cache" --start-timeout 900 \
    >>train.log 2>&1
  code=$?
  echo "exit code $code, restart $restart of 10" >>train.log
  if [ "$code" -lt 128 ]; then break; fi
  sleep 10
done
echo "$code" >exit_code
