"""What a two-way configuration says, as the merge of two records uses it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sync_orchestrator.core.two_way.three_way import Policy, Winner
from sync_orchestrator.core.values.mapping import Mapping as PayloadMapping

SEEN = "@seen"
"""In the part with the merged values of a record, those that the other side had by the time of the merge."""

OWN = "@own"
"""In the same part, those that the record's own side had."""

DeletePolicy = Literal["follow", "ask", "ignore", "restore"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two entities.

    Attributes:
        entity: Its name.
        owner: The part that two-way reads, which is the side's own record.
        required: The parts without which a record is not pushed, beside the merged values.
        shared: From the parts to the shared fields' values, by name.
        match: From the parts to the natural keys, by name, in the order in which they are tried.
        mapping: From the parts to the payload of a push, which goes to the other side.
        is_made_there: Records of this side that are not linked are made on the other side.
        has_times: Versions of the owner's part are times, in microseconds since 1970.
        read_lag: For how many seconds after a write to this side a read of it may show the state before.
        deletes: What follows when a record of this side is deleted.
    """

    entity: str
    owner: str
    required: frozenset[str]
    shared: PayloadMapping
    match: PayloadMapping
    mapping: PayloadMapping
    is_made_there: bool
    has_times: bool
    read_lag: float
    deletes: DeletePolicy


@dataclass(frozen=True, slots=True)
class TwoWay:
    """Two entities whose records are linked.

    Attributes:
        ours: The entity with ``two_way``, whose pushes go to the third party.
        theirs: The entity ``back``, whose pushes come back.
        has_same_keys: Linked records have the same key; otherwise the key of each is its id for the other side's API.
        fields: The policy of each shared field.
        first: The policy for a fresh link whose sides differ.
        skew: In microseconds; changes that lie closer together are not ordered by their times.
    """

    ours: Side
    theirs: Side
    has_same_keys: bool
    fields: Mapping[str, Policy]
    first: Policy
    skew: int

    def side_of(self, entity: str) -> Winner:
        """On which side an entity is."""
        return Winner.OURS if entity == self.ours.entity else Winner.THEIRS

    def both_sides(self, entity: str) -> tuple[Side, Side]:
        """The side of an entity, and the other one."""
        return (self.ours, self.theirs) if entity == self.ours.entity else (self.theirs, self.ours)
