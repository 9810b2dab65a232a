"""Which record of the other side a record is: by its id, by its key, or by a natural key; and whether it may be made.

Nothing ambiguous is linked, and nothing is made while it may be there already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.rules import Side, TwoWay
from sync_orchestrator.core.values.mapping import to_canonical_json
from sync_orchestrator.errors import MappingFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.core.two_way.records import SideRecord

Matches = defaultdict[tuple[str, str], tuple[str, ...]]
"""Keys of records, by the name and value of a natural key."""

BY_ID = "@id"
"""The name under which the id is kept that a create on the other side has given."""
BY_KEY = "key"

Reason = Literal["ambiguous", "not_complete", "create_under_way", "not_made_there", "unusable"]

_LOOK_AGAIN_SECONDS: Mapping[Reason, float | None] = {
    "ambiguous": 60.0,
    "not_complete": None,
    "create_under_way": 2.0,
    "not_made_there": None,
    "unusable": None,
}


@dataclass(frozen=True, slots=True)
class NewLink:
    """A record of each side that are the same; ``made_by`` says how that was found."""

    key: str
    theirs_key: str
    made_by: str


@dataclass(frozen=True, slots=True)
class LinkWait:
    """Why a record is neither linked nor made on the other side."""

    key: str
    reason: Reason
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """What has the natural key of a record: its own side's records and the other side's, and those that are linked."""

    name: str
    own: tuple[str, ...]
    others: tuple[str, ...]
    linked: tuple[str, ...] = ()
    """Of the other side's."""


def choose_partner(key: str, candidates: Sequence[Candidates]) -> tuple[str, str] | LinkWait | None:
    """Chooses the record of the other side that a record is. Pure.

    Args:
        key: The key of the record.
        candidates: By natural key, in the order in which they are tried.

    Returns:
        The key of the other record and the name of the natural key; a LinkWait where several records have it; None
        where the other side has no such record.
    """
    for each in candidates:
        if each.linked:
            return LinkWait(key, "ambiguous", f"{', '.join(each.linked)} has the same {each.name} and is linked")
        if not each.others:
            continue
        if len(each.others) == 1 and set(each.own) <= {key}:
            return each.others[0], each.name
        return LinkWait(key, "ambiguous", describe_ambiguity(each))
    return None


def describe_ambiguity(found: Candidates) -> str:
    """Several records that have the same natural key, in a sentence."""
    return (
        f"several records have the same {found.name}: here {', '.join(sorted(found.own))}; "
        f"there {', '.join(found.others)}"
    )


class Linker:
    """Links records of one side that are not linked yet, in the caller's transaction."""

    def __init__(self, connection: Connection, two_way: TwoWay, side: Side, other: Side) -> None:
        self._connection = connection
        self._two_way = two_way
        self._side = side
        self._other = other
        self.waits: dict[str, LinkWait] = {}
        self.new: list[NewLink] = []

    def link(self, records: Sequence[SideRecord]) -> list[SideRecord]:
        """Links what can be linked; returns the records that may be made on the other side.

        ``new`` are the links, ``waits`` says why others are neither linked nor made.
        """
        values = self._read_match_values(records)
        self._write_match_values(records, values)
        partners = self._find_partners(records, values)
        self._insert_links(partners)
        linked = {partner.key if self._is_ours else partner.theirs_key for partner in self.new}
        rest = [record for record in records if record.key not in linked and record.key not in self.waits]
        made = self._pass_gates(rest) if rest else []
        self._write_waits(records)
        return made

    @property
    def _is_ours(self) -> bool:
        return self._side is self._two_way.ours

    def _read_match_values(self, records: Sequence[SideRecord]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for record in records:
            parts = {name: part.data for name, part in record.parts.items()}
            try:
                values = self._side.match.build_payload(record.key, record.group, parts)
                found[record.key] = {
                    name: to_canonical_json(value) for name, value in values.items() if value not in (None, "")
                }
            except (MappingFailed, ValueError) as error:
                self.waits[record.key] = LinkWait(record.key, "unusable", f"match: {error}")
        return found

    def _write_match_values(self, records: Sequence[SideRecord], values: Mapping[str, Mapping[str, str]]) -> None:
        if not self._side.match.fields:
            return
        entity = self._side.entity
        run(
            self._connection,
            queries.DELETE_MATCH_VALUES,
            entity=entity,
            keys=[record.key for record in records],
            all=False,
        )
        rows = [(key, name, value) for key, of in sorted(values.items()) for name, value in of.items()]
        if rows:
            run(
                self._connection,
                queries.WRITE_MATCH_VALUES,
                entity=[entity] * len(rows),
                key=[key for key, _, _ in rows],
                field=[name for _, name, _ in rows],
                value=[value for _, _, value in rows],
            )

    def _find_partners(
        self, records: Sequence[SideRecord], values: Mapping[str, Mapping[str, str]]
    ) -> dict[str, tuple[str, str]]:
        keys = [record.key for record in records if record.key not in self.waits]
        partners = self._find_by_key(keys) if self._two_way.has_same_keys else self._find_by_id(records)
        names = self._side.match.fields
        wanted = [(name, value) for key in keys for name, value in values[key].items()]
        if not wanted or self._two_way.has_same_keys:
            return partners
        own, _ = self._list_matches(self._side, wanted)
        others, linked = self._list_matches(self._other, wanted)
        for key in keys:
            if key in partners:
                continue
            candidates = [
                Candidates(name, own[place], others[place], linked[place])
                for name in names
                if name in values[key]
                for place in [(name, values[key][name])]
            ]
            chosen = choose_partner(key, candidates)
            if isinstance(chosen, LinkWait):
                self.waits[key] = chosen
            elif chosen is not None:
                partners[key] = chosen
        return partners

    def _find_by_key(self, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
        rows = run(self._connection, queries.LIST_PRESENT_KEYS, entity=self._other.entity, keys=list(keys))
        return {row.key: (row.key, BY_KEY) for row in rows}

    def _find_by_id(self, records: Sequence[SideRecord]) -> dict[str, tuple[str, str]]:
        """Records that a create of either side has made."""
        wanted = [(BY_ID, record.key) for record in records]
        made_here = {value: keys for (_, value), keys in self._list_matches(self._other, wanted)[0].items()}
        partners = {key: (others[0], BY_ID) for key, others in made_here.items() if len(others) == 1}
        known = {record.external_id: record.key for record in records if record.external_id is not None}
        rows = run(self._connection, queries.LIST_PRESENT_KEYS, entity=self._other.entity, keys=sorted(known))
        return {known[row.key]: (row.key, BY_ID) for row in rows} | partners

    def _list_matches(self, side: Side, wanted: Iterable[tuple[str, str]]) -> tuple[Matches, Matches]:
        """The records of a side by natural key: those that are not linked, and those that are."""
        pairs = sorted(set(wanted))
        found: Matches = defaultdict(tuple)
        linked: Matches = defaultdict(tuple)
        for row in run(
            self._connection,
            queries.LIST_MATCHES,
            entity=side.entity,
            links=self._two_way.ours.entity,
            is_ours=side is self._two_way.ours,
            field=[name for name, _ in pairs],
            value=[value for _, value in pairs],
        ):
            (linked if row.is_linked else found)[row.field, row.value] += (row.key,)
        return found, linked

    def _insert_links(self, partners: Mapping[str, tuple[str, str]]) -> None:
        links = [
            NewLink(key, other, by) if self._is_ours else NewLink(other, key, by)
            for key, (other, by) in sorted(partners.items())
        ]
        if not links:
            return
        made = {
            (row.key, row.theirs_key)
            for row in run(
                self._connection,
                queries.INSERT_LINKS,
                entity=self._two_way.ours.entity,
                key=[link.key for link in links],
                theirs_key=[link.theirs_key for link in links],
                made_by=[link.made_by for link in links],
            )
        }
        for link in links:
            if (link.key, link.theirs_key) in made:
                self.new.append(link)
            else:
                key, other = (link.key, link.theirs_key) if self._is_ours else (link.theirs_key, link.key)
                self.waits[key] = LinkWait(key, "ambiguous", f"{other} is linked with another record")

    def _pass_gates(self, records: Sequence[SideRecord]) -> list[SideRecord]:
        """The records that may be made on the other side, since all of that side is known and lacks them."""
        reason: Reason | None = None
        if not self._side.is_made_there:
            reason = "not_made_there"
        elif not run(self._connection, queries.IS_COMPLETE, entity=self._other.entity)[0].complete:
            reason = "not_complete"
        elif (
            not self._two_way.has_same_keys
            and run(self._connection, queries.IS_CREATE_UNDER_WAY, entity=self._other.entity)[0].found
        ):
            reason = "create_under_way"
        if reason is None:
            return list(records)
        made_before = [record for record in records if record.external_id is not None and reason != "not_made_there"]
        self.waits |= {record.key: LinkWait(record.key, reason) for record in records if record not in made_before}
        return made_before

    def _write_waits(self, records: Sequence[SideRecord]) -> None:
        entity = self._side.entity
        over = [record.key for record in records if record.key not in self.waits]
        if over:
            run(self._connection, queries.DELETE_WAITS, entity=entity, keys=over)
        if waits := [self.waits[key] for key in sorted(self.waits)]:
            run(
                self._connection,
                queries.WRITE_WAITS,
                entity=entity,
                key=[wait.key for wait in waits],
                reason=[wait.reason for wait in waits],
                detail=[wait.detail for wait in waits],
                seconds=[_LOOK_AGAIN_SECONDS[wait.reason] for wait in waits],
            )
