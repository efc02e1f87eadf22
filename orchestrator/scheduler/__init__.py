"""Cells on Ray: the one room that imports it.

`session` brings a runtime up, here or on a cluster; `survey` asks a cluster's nodes what they are;
`placement` says what a cell asks of them; `worker` runs cells there; `tune_run` has Tune place
them; `execution` makes of all that cells in, (cell, record) out.
"""

from orchestrator.scheduler.execution import run_on_ray, width
from orchestrator.scheduler.session import RaySession, cluster_joined, ray_started

__all__ = ["RaySession", "cluster_joined", "ray_started", "run_on_ray", "width"]
