"""Dagster's entry: every asset, check, job, sensor and schedule, from ``sync.yaml``. No database is touched here."""

from __future__ import annotations

import os

import dagster as dg

from sync_orchestrator.builder import build_definitions
from sync_orchestrator.composition import load_config
from sync_orchestrator.resources.system import DATABASE_URL_VARIABLE, SystemResource

__all__ = ["build_definitions", "defs"]


@dg.definitions
def defs() -> dg.Definitions:
    """Loads ``sync.yaml``, or the file that ``SYNC_CONFIG`` names."""
    url = dg.EnvVar(DATABASE_URL_VARIABLE) if os.environ.get(DATABASE_URL_VARIABLE) else None
    return build_definitions(load_config(), SystemResource(database_url=url))
