"""Dagster's queue of runs, past which drains go: they are asked for when there is work, and must wait for nothing.

The queue is looked at every few seconds, which costs a dozen connections each time; a drain would wait for that look.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

AT_ONCE = "incremental_sync"
"""The job whose runs are not queued."""


class DrainsAtOnce(QueuedRunCoordinator):
    """The queue for all other jobs."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Launches a drain, and queues anything else."""
        if context.dagster_run.job_name != AT_ONCE:
            return super().submit_run(context)
        self._instance.launch_run(context.dagster_run.run_id, context.workspace)
        run = self._instance.get_run_by_id(context.dagster_run.run_id)
        assert run is not None
        return run
