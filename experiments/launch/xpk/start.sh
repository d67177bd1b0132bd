#!/usr/bin/env bash
# One host of a slice; the cluster says which. Exit codes of 128 and more are those of a process
# that was stopped by a signal (143) or lost a peer (142): XPK restarts the workload, which resumes.
set -euo pipefail
cd "$(dirname "$0")"
mountpoint -q /runs ||
  { echo "/runs is not mounted: see xpk storage attach" >&2; exit 2; }
python3 -m pip install --quiet --root-user-action ignore -r requirements.txt
: >train.log
tail -n +1 -F train.log &
shows=$!
exec dynexit train experiment/digits_vit.py --run /runs/digits --cache /runs/compilation_cache --start-timeout 900 \
  >>train.log 2>&1
