"""Dagster's entry: every asset, check, job, sensor and schedule, from ``sync.yaml``. No database is touched here."""

from __future__ import annotations

import os

import dagster as dg

from sync_orchestrator.builder import build
from sync_orchestrator.composition import load_config
from sync_orchestrator.resources.system import DATABASE_URL_VARIABLE, System

__all__ = ["build", "defs"]


@dg.definitions
def defs() -> dg.Definitions:
    """Loads ``sync.yaml``, or the file that ``SYNC_CONFIG`` names."""
    url = dg.EnvVar(DATABASE_URL_VARIABLE) if os.environ.get(DATABASE_URL_VARIABLE) else None
    return build(load_config(), System(database_url=url))
