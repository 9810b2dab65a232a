"""What is proposed from an OpenAPI document: the calls of a third party or of a part, and their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sync_orchestrator.cli.starter.columns import Column

Calls = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names:
    """What a source calls key and business group; the group may be unknown."""

    key: str
    group: str | None


@dataclass(frozen=True, slots=True)
class ThirdPartyProposal:
    """The settings of ``third_party`` but for ``system``, the mapping, and the fields that were left out of it."""

    settings: Calls
    mapping: Calls
    optional: Calls
    """Optional fields that the source has nothing of by name; they are offered as comments."""


@dataclass(frozen=True, slots=True)
class PartProposal:
    """The calls of a source's part, and the columns of its records."""

    calls: Calls
    columns: tuple[Column, ...]
