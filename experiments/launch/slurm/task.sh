#!/usr/bin/env bash
# One process of the job; SLURM's variables say which.
trap : TERM HUP USR1 INT
/shared/environment/bin/python -m dynexit.cli.main train experiment/digits_vit.py --run /shared/runs/digits --cache /shared/runs/compilation_cache
code=$?
echo "$code" >"codes/$SLURM_PROCID"
exit "$code"
