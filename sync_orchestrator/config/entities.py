"""An entity: the parts that make up a record, its mapping, its shape at the third party, and its rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sync_orchestrator.config.sources import PartSettings
from sync_orchestrator.config.targets import TargetSettings
from sync_orchestrator.config.two_way import TwoWaySettings
from sync_orchestrator.config.types import Expression, Model, Name, Seconds

Repair = Literal["auto", "ask", "off"]
"""What is done about drift and lost notifications that were found."""


class RetrySettings(Model):
    """1 + ``retries`` attempts; waits of ``first_wait``, doubling up to ``max_wait``, with jitter."""

    retries: int = Field(default=3, ge=0, le=100)
    """Attempts after the first one; then a person is told."""
    first_wait: Seconds = 10
    """The wait before the second attempt."""
    factor: float = Field(default=2, ge=1)
    """By how much each wait is longer than the one before."""
    max_wait: Seconds = 3600
    """No wait is longer."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """A wait is lengthened by at most this share of itself."""


class DeletionSettings(Model):
    """How many records may be deleted within ``window`` without a delete event: min(max, max(min, share * group)).

    More are held back until an operator allows them: by ``--allow-deletions`` of a full sync or a repair.
    """

    min: int = Field(default=5, ge=0)
    """So many are always allowed."""
    share: float = Field(default=0.05, ge=0, le=1)
    """The share of the business group that is allowed."""
    max: int = Field(default=100, ge=0)
    """More are never allowed."""
    entity_max: int = Field(default=1000, ge=0)
    """The upper bound for all business groups of the entity together, where ``min`` and ``share`` hold as well."""
    window: Seconds = 86_400
    """The time over which deletions are added up."""

    def group_cap(self, group_size: int) -> int:
        """The cap for a business group of this many records."""
        return min(self.max, max(self.min, int(self.share * group_size)))

    def entity_cap(self, entity_size: int) -> int:
        """The cap for all business groups of an entity of this many records."""
        return min(self.entity_max, max(self.min, int(self.share * entity_size)))


class ValidationSettings(Model):
    """How it is checked that the third party holds what it should, and what is done where it does not."""

    every: Seconds = 900
    """How often each business group is validated by the schedule."""
    full_comparison_every: Seconds = 86_400
    """How often at least it is compared record by record, whatever its count says."""
    confirm_after: Seconds = 2
    """The pause before a suspect is looked at again."""
    repair: Repair = "auto"
    """``auto``: drift is repaired. ``ask``: it is told of, and a person starts the repair. ``off``: it is told of."""
    unmanaged: Literal["report", "delete"] = "report"
    """What is done about records there that we never put there."""
    deletions: DeletionSettings = DeletionSettings()


class SourceCheckSettings(Model):
    """How it is checked that the archive has what the sources have: notifications get lost."""

    every: Seconds | None = 86_400
    """How often each business group is listed at its sources by the schedule; null for never. Never, too, where a part
    is in files, which are for first loads."""
    confirm_after: Seconds = 30
    """The pause before a suspect is looked at again: so long a notification may be on its way. At least twice
    ``poll_every`` of a part with ``changes``."""
    contents: int = Field(default=200, ge=0, le=100_000)
    """How many records of a business group a check compares by their contents as well, in turn: the others it compares
    by version alone."""
    repair: Repair = "auto"
    """``auto``: what was lost becomes a change event. ``ask``: it is told of, and a person starts the repair. ``off``:
    it is told of."""


Owner = Annotated[str, Field(pattern=r"^(team:\S.*|[^@\s]+@[^@\s.]+(\.[^@\s.]+)+)$")]
"""Who looks after an entity: an email address, or ``team:`` and a name."""


class EntitySettings(Model):
    """A kind of record, the source systems that make it up, and its shape at the third party."""

    owner: Name
    """The part whose source decides whether the record exists and which group it is in."""
    parts: dict[Name, PartSettings] = Field(min_length=1)
    """What each source system says of a record, by the source system's name."""
    mapping: dict[str, Expression] = Field(min_length=1)
    """Third-party field: JMESPath over ``{key, group, <part>: {...}, ...}``."""
    third_party: TargetSettings
    """Where and how its records are kept there."""
    on_missing: Literal["wait", "fetch", "upsert"] = "wait"
    """What becomes of an update whose record is not here yet: it waits for the record, the record is read from its
    owner, or the update makes it."""
    max_ahead: Seconds = 3600
    """A version further in the future waits and is told of: it would supersede all that comes after it."""
    absent_after: Seconds = 900
    """For how long a source may lack, or show older, what a notification announces: replicas lag. The notification
    waits and spends no attempts; after this time an operator is alerted. It never becomes a deletion by itself."""
    retry: RetrySettings | None = None
    """In place of the common rule."""
    validation: ValidationSettings = ValidationSettings()
    samples: list[dict[str, object]] = []
    """Records as the mapping makes them, which the command ``conformance`` makes its own of; it reads one from the
    sources unless told. Two let it change more than one field."""
    source_check: SourceCheckSettings = SourceCheckSettings()
    two_way: TwoWaySettings | None = None
    """People change its records on both sides. Leave it out where each field belongs to one side."""
    owners: list[Owner] = []
    """The people who look after it, which the Dagster UI shows: email addresses, or ``team:`` and a name."""

    @model_validator(mode="after")
    def _check_consistency(self) -> EntitySettings:
        owner = self.parts.get(self.owner)
        if owner is None:
            raise ValueError(f"owner '{self.owner}' is none of the parts: {', '.join(self.parts)}")
        if owner.group is None:
            raise ValueError(f"parts.{self.owner}.group is needed: the owner sets the business group")
        if self.third_party.key_field not in self.mapping:
            raise ValueError(f"mapping has no '{self.third_party.key_field}', which third_party.key_field names")
        if unmapped := sorted(self.third_party.fields.keys() - self.mapping.keys()):
            raise ValueError(f"third_party.fields.{unmapped[0]}: the mapping has no such field")
        if self.third_party.deletes == "never" and self.validation.unmanaged == "delete":
            raise ValueError("validation.unmanaged: 'delete' contradicts third_party.deletes, which is 'never'")
        if self.on_missing == "fetch" and owner.list is not None and owner.read is None:
            raise ValueError(f"on_missing 'fetch' needs parts.{self.owner}.read")
        return self
