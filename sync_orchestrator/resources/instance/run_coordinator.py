"""Dagster's queue of runs, which some jobs skip: drains, and the evaluation of open alerts.

The queue is read every few seconds, which costs a dozen connections each time; these runs would wait for that.
"""

from __future__ import annotations

from dagster import DagsterRun

# Unnecessary once a run can be launched at once beside a queue: https://github.com/dagster-io/dagster/issues/7351
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from sync_orchestrator.resources.job_names import INCREMENTAL_SYNC, REPORT_ALERTS

AT_ONCE = (INCREMENTAL_SYNC, REPORT_ALERTS)
"""The jobs whose runs are not queued."""


class DrainsAtOnce(QueuedRunCoordinator):
    """The queue for all other jobs."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Launches a run of these jobs, and queues any other."""
        if context.dagster_run.job_name not in AT_ONCE:
            return super().submit_run(context)
        self._instance.launch_run(context.dagster_run.run_id, context.workspace)
        run = self._instance.get_run_by_id(context.dagster_run.run_id)
        assert run is not None
        return run
