"""What the adoption of an entity and of its business groups came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sync_orchestrator.core.validation.source_check import SourceCheckResult

if TYPE_CHECKING:
    from sync_orchestrator.core.validation.validate import GroupValidation


@dataclass(slots=True)
class GroupListing:
    """One business group of an adoption: how many records the third party listed, or why it could not be adopted."""

    group: str
    listed: int = 0
    error: str | None = None
    held: str | None = None
    """Why records that the sources no longer have were not deleted."""


@dataclass(slots=True)
class Adoption:
    """What the adoption of one entity came to.

    ``linked`` counts records by what follows: ``in_sync`` nothing, ``update``, ``create``, ``delete`` one call,
    ``gone`` nothing (deleted on both sides), ``extra`` a decision of validation (deleted here, present there).
    """

    entity: str
    system: str
    groups: list[GroupListing] = field(default_factory=list)
    linked: dict[str, int] = field(default_factory=dict)
    unmanaged: int = 0
    unmanaged_examples: list[str] = field(default_factory=list)
    duplicates: dict[str, list[str]] = field(default_factory=dict)
    """By key, the ids of all records that carry it."""
    stopped: str | None = None
    """Why nothing was linked."""
    lifted: bool = False
    still_to_adopt: list[str] = field(default_factory=list)
    """Entities of the same third party that keep pushes suspended."""
    checks: list[SourceCheckResult] = field(default_factory=list)
    validations: list[GroupValidation] = field(default_factory=list)
