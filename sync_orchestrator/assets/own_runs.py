"""Which runs of a code location are ours: a company's project has jobs and assets of its own beside them."""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from sync_orchestrator.assets.lineage import archive_key, mirror_key
from sync_orchestrator.resources.job_names import list_job_names


def is_own_run(run: dg.DagsterRun, entities: Collection[str]) -> bool:
    """Whether a run is that of a job of ours, or of nothing but assets and checks of ours.

    Args:
        run: A run of the code location.
        entities: The names of the entities.
    """
    if run.job_name in list_job_names(entities):
        return True
    assets = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
    own = {key for entity in entities for key in (archive_key(entity), mirror_key(entity))}
    return bool(assets) and assets <= own
