"""Launching: from an experiment file to a run on a pod, a cluster, a cloud or this machine."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.runs.launch.execute import execute as execute
    from dynexit.runs.launch.job import Job as Job
    from dynexit.runs.launch.job import make_job as make_job
    from dynexit.runs.launch.local import Local as Local
    from dynexit.runs.launch.local import execute_local as execute_local
    from dynexit.runs.launch.local import plan_local as plan_local
    from dynexit.runs.launch.plan import Command as Command
    from dynexit.runs.launch.plan import File as File
    from dynexit.runs.launch.plan import Plan as Plan
    from dynexit.runs.launch.plan import show as show
    from dynexit.runs.launch.sky import Sky as Sky
    from dynexit.runs.launch.sky import plan_sky as plan_sky
    from dynexit.runs.launch.slurm import Slurm as Slurm
    from dynexit.runs.launch.slurm import plan_slurm as plan_slurm
    from dynexit.runs.launch.tpu import Tpu as Tpu
    from dynexit.runs.launch.tpu import plan_tpu as plan_tpu
    from dynexit.runs.launch.xpk import Xpk as Xpk
    from dynexit.runs.launch.xpk import plan_xpk as plan_xpk

__getattr__, __dir__ = attach(__name__)
