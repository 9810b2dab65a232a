"""Samples of drift: which fields of a record differ, and how. Secrets are masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core.archive.archived_records import read_parts_data
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.validation.confirmation import ConfirmedSuspect
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.scope import ValidationScope
from sync_orchestrator.errors import MappingFailed
from sync_orchestrator.texts.masking import mask_all
from sync_orchestrator.texts.storable_text import storable_json

Sample = list[dict[str, Any]]
"""Rows of field, ours, theirs."""


def sample_drift(connection: Connection, scope: ValidationScope, confirmed: Sequence[ConfirmedSuspect]) -> list[Sample]:
    """Returns the differing fields of each suspect, in their order."""
    if not confirmed:
        return []
    parts = read_parts_data(connection, scope.entity.name, [each.suspect.key for each in confirmed])
    return [_build_sample(scope, each, parts.get(each.suspect.key, {})) for each in confirmed]


def _build_sample(scope: ValidationScope, confirmed: ConfirmedSuspect, parts: Mapping[str, object]) -> Sample:
    suspect, mapping = confirmed.suspect, scope.entity.mapping
    ours: Json = {}
    if suspect.kind not in (DriftKind.EXTRA, DriftKind.UNMANAGED):
        try:
            ours = mapping.build_payload(suspect.key, suspect.belongs_to or scope.group, parts)
        except MappingFailed:
            ours = {}
    theirs = {} if confirmed.found is None else confirmed.found.fields
    sample: Sample = storable_json(
        mask_all([*confirmed.place_differences(scope), *mapping.list_differences(ours, theirs)])
    )
    return sample
