"""Validation of a business group: by count, then by diff; suspects are confirmed before anything is said; repair.

Records with open or unknown pushes are left out of judgement, so changes may flow. The algorithm is that of consistent
comparison under load: a bracket for the count, a shadow of what was acknowledged, a second look at each suspect.
Not here: the comparison itself (``group_diff.py``, ``compare.py``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db import notify
from sync_orchestrator.core.db.session import in_transaction, json, run
from sync_orchestrator.core.groups import queries as groups_queries
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.operations.dead_records import (
    DeadRecord,
    DeadSelection,
    count_dead_of_group,
    count_text,
    list_dead_records,
)
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.push import queries as push_queries
from sync_orchestrator.core.shutdown import ended_in_order
from sync_orchestrator.core.systems.accounts import ASK_AGAIN_SECONDS, is_same_account
from sync_orchestrator.core.systems.breaker import closed_reason
from sync_orchestrator.core.systems.installation import LOOK_INTERVAL_SECONDS
from sync_orchestrator.core.systems.suspension import NotedStray, note_stray_ids
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.compare import Suspect
from sync_orchestrator.core.validation.diff import diff
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.places import differences_of_place, digest_elsewhere, is_elsewhere, what_differs
from sync_orchestrator.errors import CallFailed, MappingFailed
from sync_orchestrator.texts.masking import mask_all
from sync_orchestrator.texts.storable_text import storable_json

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import Repair

_before_repair_commit = CrashPoint("validation.before_repair_commit")

_MAX_DEAD_EXAMPLES = 50

Verdict = Literal["in_sync", "drift", "not_validated"]


@dataclass(frozen=True, slots=True)
class Drift:
    """One confirmed difference; ``sample`` has rows of field, ours, theirs."""

    key: str
    kind: str
    external_id: str | None
    sample: list[dict[str, Any]]
    status: str


@dataclass(slots=True)
class GroupValidation:
    """What a validation found. ``compared`` None: the count sufficed. ``repaired``: sent to repair.

    ``dead`` counts keys: records that were refused, are out of attempts or on hold, and changes that died before the
    archive had them; ``dead_records`` has the oldest of them. They are a difference, and not ``ambiguous`` (in flight).
    ``unmanaged``: records that are in ``counted`` and were never put there by us, found now or known from before.
    ``discarded``: records that an operator gave up. ``dead_without_group``: dead changes of the entity that belong to
    no known business group; they are in no group's verdict.
    """

    entity: str
    group: str
    verdict: Verdict = "in_sync"
    reason: str | None = None
    expected: int = 0
    counted: int | None = None
    ambiguous: int = 0
    compared: int | None = None
    drift: list[Drift] = field(default_factory=list)
    repaired: int = 0
    unmanaged: int = 0
    persistent: int = 0
    dead: int = 0
    discarded: int = 0
    dead_without_group: int = 0
    dead_records: list[DeadRecord] = field(default_factory=list)


def groups_due(connection: Connection, entity: str, every: float, most: int) -> list[str]:
    """Business groups whose validation is due, the longest unseen first; ``every`` in seconds."""
    return [
        row.group_key
        for row in run(connection, queries.LIST_GROUPS_DUE_FOR_VALIDATION, entity=entity, every=every, most=most)
    ]


def groups_with_drift(connection: Connection, entity: str) -> dict[str, bool]:
    """Business groups with drift that is not known to be gone, each with whether all of it is unmanaged records.

    Unmanaged records are left where they are, so such a group stays here until a full comparison finds them gone.
    """
    return {row.group_key: row.only_unmanaged for row in run(connection, queries.LIST_GROUPS_WITH_DRIFT, entity=entity)}


async def validate(
    context: Context, entity: EntityContext, group: str, *, full: bool = False, repair: Repair | None = None
) -> GroupValidation:
    """Validates one group and, as configured or told, sends what is wrong to repair.

    ``full`` compares record by record whatever the count says. A third party that cannot be asked makes the verdict
    ``not_validated``; nothing is raised for it.
    """
    work = _Validation(context, entity, group, full, repair or entity.settings.validation.repair)
    return await work.run()


class _Validation:
    def __init__(self, context: Context, entity: EntityContext, group: str, full: bool, repair: Repair) -> None:
        self._context = context
        self._entity = entity
        self._group = group
        self._full = full
        self._repair = repair
        self._settings = entity.settings.validation
        self._strays: list[NotedStray] = []
        self.result = GroupValidation(entity.name, group)
        self._ambiguous = 0
        self._by_listing: set[tuple[str, str | None]] = set()
        self._count_said: int | None = None
        self._of_other_groups = 0

    async def run(self) -> GroupValidation:
        if self._context.installation is not None:
            await asyncio.to_thread(self._context.installation.look, at_most_every=LOOK_INTERVAL_SECONDS)
        await is_same_account(self._context, self._entity.system_name, at_most_every=ASK_AGAIN_SECONDS)
        since, reason = await self._db(self._begin)
        if reason is not None:
            return await self._end(reason=reason)
        try:
            if not self._full and await self._count_fits(since):
                return await self._end()
            found = await self._diff(since)
            confirmed = await self._confirm(found)
        except CallFailed as failure:
            return await self._end(reason=f"third party {self._entity.system_name} gave no usable response: {failure}")
        if await self._db(lambda connection: self._conclude(connection, confirmed, since)):
            await self._delete_unmanaged(confirmed)
        return self.result

    async def _db(self, work: Any) -> Any:
        return await asyncio.to_thread(in_transaction, self._context.engine, work)

    def _begin(self, connection: Connection) -> tuple[datetime, str | None]:
        since = run(connection, queries.SELECT_NOW)[0].now
        rows = run(
            connection,
            queries.SELECT_GROUP,
            entity=self._entity.name,
            group=self._group,
            full_comparison_every=self._settings.full_comparison_every,
        )
        if not rows or rows[0].first_completed_at is None:
            return since, "its first full sync has not completed"
        if (closed := closed_reason(connection, self._entity.system_name)) is not None:
            return since, closed
        self._full = self._full or bool(rows[0].full_comparison_due)
        return since, None

    def _ours(self, since: datetime) -> dict[str, Any]:
        return {
            "entity": self._entity.name,
            "group": self._group,
            "since": since,
            "lag": self._entity.system.search_lag,
        }

    async def _count_fits(self, since: datetime) -> bool:
        counted = await self._entity.third_party.count(self._group)

        def look(connection: Connection) -> bool:
            ours = run(connection, queries.COUNT_EXPECTED, **self._ours(since))[0]
            known = run(connection, queries.SELECT_KNOWN_UNMANAGED, entity=self._entity.name, group=self._group)[0][0]
            self.result.expected, self.result.counted = ours.settled, counted
            self._ambiguous, self._count_said, self.result.unmanaged = ours.ambiguous, counted, known
            low = ours.settled + known
            return counted is not None and low <= counted <= low + ours.ambiguous

        return bool(await self._db(look))

    async def _diff(self, since: datetime) -> list[Suspect]:
        found = await diff(self._context, self._entity, self._group, since)
        self.result.counted = self.result.compared = found.listed
        self.result.expected, self._ambiguous = found.expected, found.ambiguous
        self._of_other_groups = found.of_other_groups
        return found.suspects

    async def _confirm(self, found: Sequence[Suspect]) -> list[tuple[Suspect, Found | None]]:
        """Looks at each suspect again; what looks right by now was in flight, not wrong."""
        if not found:
            return []
        await asyncio.sleep(self._settings.confirm_after)
        limit = asyncio.Semaphore(self._entity.system.concurrency)
        looked = await asyncio.gather(*(self._look_again(suspect, limit) for suspect in found))
        if any(wrong is None for wrong, _ in looked):
            self._by_listing = await self._misplaced_by_listing(found)
        return [
            (suspect, there)
            for suspect, (wrong, there) in zip(found, looked, strict=True)
            if (self._is_by_listing(suspect) if wrong is None else wrong)
        ]

    async def _misplaced_by_listing(self, found: Sequence[Suspect]) -> set[tuple[str, str | None]]:
        """Lists the group again for records that do not name their group, which a read cannot confirm.

        Returns key and id of those that are still listed here and belong elsewhere, or belong here and are not listed.
        """
        listed = {
            (record.key, record.external_id)
            async for page in self._entity.third_party.pages(self._group)
            for record in page
        }
        keys = {key for key, _ in listed}
        return {
            _identity(suspect)
            for suspect in found
            if (_identity(suspect) in listed if suspect.belongs_to is not None else suspect.key not in keys)
        }

    def _is_by_listing(self, suspect: Suspect) -> bool:
        return _identity(suspect) in self._by_listing

    async def _look_again(self, suspect: Suspect, limit: asyncio.Semaphore) -> tuple[bool | None, Found | None]:
        """Returns whether a suspect is wrong, None where only another listing can say that, and what is there."""
        item = Item(suspect.key, self._group, {}, suspect.external_id)
        async with limit:
            there = await self._entity.third_party.read(item) if suspect.external_id else None
            if there is not None and self._is_strangers(suspect, there):
                there = None  # the id was given to another record, which is judged under its own key
            if there is None and suspect.kind == "missing" and self._entity.third_party.capabilities.can_lookup:
                found = await self._entity.third_party.lookup(suspect.key, self._group)
                there = next((each for each in found if other_key(suspect.key, each.key) is None), None)
        if suspect.kind == "missing" and there is None:
            return True, None
        if there is None:
            return False, None
        if suspect.kind in ("extra", "duplicate", "unmanaged"):
            return there.group in (None, self._group), there
        return self._is_misplaced(suspect, there), there

    def _is_misplaced(self, suspect: Suspect, there: Found) -> bool | None:
        """Whether a record of ours is different there, or in another place; None where only a listing can say that."""
        capabilities = self._entity.third_party.capabilities
        unsaid = there.group is None and not capabilities.shows_group
        if suspect.belongs_to is not None:
            return None if unsaid else is_elsewhere(capabilities, there.group, suspect.belongs_to)
        if is_elsewhere(capabilities, there.group, self._group) or self._differs(suspect, there):
            return True
        return None if unsaid and suspect.kind == "missing" and capabilities.lists_by_group else False

    def _is_strangers(self, suspect: Suspect, there: Found) -> bool:
        """Whether another record is under a suspect's id by now; one that we were given is noted as a stray id."""
        assigns_ids = self._entity.third_party.capabilities.assigns_ids
        nameless = suspect.kind == "unmanaged" and suspect.key == suspect.external_id  # it shows no key
        shown = other_key(suspect.key, there.key)
        if not assigns_ids or nameless or shown is None:
            return False
        if suspect.revision and suspect.external_id:
            self._strays.append((self._entity.name, suspect.key, suspect.external_id, shown))
        return True

    def _differs(self, suspect: Suspect, there: Found) -> bool:
        suspect_for_its_id = suspect.theirs is not None and suspect.theirs == suspect.ours
        return (
            suspect_for_its_id
            or there.external_id != suspect.external_id
            or self._entity.mapping.digest_of_theirs(there.fields) != suspect.ours
        )

    def _untouched(
        self, connection: Connection, confirmed: Sequence[tuple[Suspect, Found | None]]
    ) -> list[tuple[Suspect, Found | None]]:
        """Those that nobody changed, pushed or sent to repair since they were listed."""
        known = [suspect for suspect, _ in confirmed if suspect.revision]
        rows = run(
            connection,
            queries.SELECT_UNCHANGED,
            entity=self._entity.name,
            keys=[suspect.key for suspect in known],
            revisions=[suspect.revision for suspect in known],
            applied_at=[suspect.applied_at for suspect in known],
        )
        still = {row.key for row in rows}
        return [(suspect, there) for suspect, there in confirmed if suspect.kind == "unmanaged" or suspect.key in still]

    def _conclude(
        self, connection: Connection, confirmed: Sequence[tuple[Suspect, Found | None]], since: datetime
    ) -> bool:
        """Notes what was found and sends it to repair; False where the third party is closed to us by now."""
        if (closed := closed_reason(connection, self._entity.system_name)) is not None:
            self._not_validated(connection, closed)
            return False
        if self._strays and note_stray_ids(connection, self._entity.system_name, self._strays):
            self._not_validated(connection, closed_reason(connection, self._entity.system_name) or "")
            return False
        before = {
            _thing(row.key, row.kind, row.external_id): row
            for row in run(connection, queries.SELECT_OPEN_DRIFT, entity=self._entity.name, group=self._group)
        }
        confirmed = self._untouched(connection, confirmed)  # after ``before``: a repair that it shows is seen here, too
        samples = self._samples(connection, confirmed)
        ids = _ids(confirmed, before)
        statuses = self._statuses(connection, confirmed, ids, before)
        self.result.drift = [
            Drift(suspect.key, _kind(suspect, there), external_id, sample, status)
            for (suspect, there), external_id, sample, status in zip(confirmed, ids, samples, statuses, strict=True)
        ]
        self._note(connection, confirmed)
        run(connection, queries.MARK_DRIFT_REPAIRED, **self._ours(since))
        self._send_to_repair(connection, confirmed)
        _before_repair_commit()
        self._tell(connection, before)
        self._write_end(connection, compared_fully=True)
        return True

    def _statuses(
        self,
        connection: Connection,
        confirmed: Sequence[tuple[Suspect, Found | None]],
        ids: Sequence[str | None],
        before: dict[Any, Any],
    ) -> list[str]:
        extra = sum(1 for suspect, _ in confirmed if suspect.kind == "extra")
        cap = 0
        if extra:
            size = run(connection, groups_queries.COUNT_GROUP_RECORDS, entity=self._entity.name, group=self._group)[0][
                0
            ]
            cap = self._settings.deletions.cap(size)
        self._tell_of_cap(connection, "extra", extra, cap)
        return [
            self._status(
                suspect, there, before.get(_thing(suspect.key, _kind(suspect, there), external_id)), capped=extra > cap
            )
            for (suspect, there), external_id in zip(confirmed, ids, strict=True)
        ]

    def _tell_of_cap(self, connection: Connection, kind: str, count: int, cap: int) -> bool:
        """Says whether there are more of a kind than may be deleted at once."""
        place = f"{self._entity.name} {self._group}"
        if count > cap:
            alerts.tell(
                connection,
                "delete_cap",
                f"{place}: {kind}",
                entity=self._entity.name,
                title=f"{place}: {count} {kind} records at the third party, more than the cap of {cap}",
            )
        else:
            alerts.resolve(connection, "delete_cap", f"{place}: {kind}")
        return count > cap

    def _status(self, suspect: Suspect, there: Found | None, earlier: Any, *, capped: bool) -> str:
        if suspect.kind in ("unmanaged", "duplicate"):
            return "left"
        unchanged = (
            earlier is not None
            and _same(earlier.ours, suspect.ours)
            and _same(earlier.theirs, self._theirs(suspect, there))
        )
        if earlier is not None and unchanged and earlier.status in ("repairing", "persistent"):
            return "persistent"
        return "found" if self._repair != "auto" or (capped and suspect.kind == "extra") else "repairing"

    def _theirs(self, suspect: Suspect, there: Found | None) -> bytes | None:
        """The digest of what is there: one that no payload has where the place is wrong, so that it is written."""
        if there is None:
            return None
        if self._is_by_listing(suspect):
            return digest_elsewhere(self._entity.mapping.digest_of_theirs(there.fields), self._listed_in(suspect))
        return self._entity.digest_of_found(there, suspect.belongs_to or self._group)

    def _listed_in(self, suspect: Suspect) -> str | None:
        """Where a record is, as far as listings say; None where it is not in the group that was listed."""
        return self._group if suspect.belongs_to is not None else None

    def _place(self, there: Found) -> str:
        """The business group under which a record that is there counts as acknowledged."""
        grouped = self._entity.third_party.capabilities.group_in_address
        return self._group if grouped else there.group or self._group

    def _note(self, connection: Connection, confirmed: Sequence[tuple[Suspect, Found | None]]) -> None:
        if confirmed:
            run(
                connection,
                queries.INSERT_DRIFT,
                entity=self._entity.name,
                group=self._group,
                key=[drift.key for drift in self.result.drift],
                kind=[drift.kind for drift in self.result.drift],
                revision=[suspect.revision for suspect, _ in confirmed],
                ours=[suspect.ours for suspect, _ in confirmed],
                theirs=[self._theirs(suspect, there) for suspect, there in confirmed],
                external_id=[drift.external_id for drift in self.result.drift],
                sample=[json(drift.sample) for drift in self.result.drift],
                status=[drift.status for drift in self.result.drift],
            )

    def _send_to_repair(self, connection: Connection, confirmed: Sequence[tuple[Suspect, Found | None]]) -> None:
        chosen = [
            (suspect, there)
            for (suspect, there), drift in zip(confirmed, self.result.drift, strict=True)
            if drift.status == "repairing"
        ]
        if chosen:
            chosen.sort(key=lambda pair: pair[0].key)
            rows = run(
                connection,
                queries.MARK_DUE_FOR_REPAIR,
                entity=self._entity.name,
                keys=[suspect.key for suspect, _ in chosen],
                revisions=[suspect.revision for suspect, _ in chosen],
                theirs=[self._theirs(suspect, there) for suspect, there in chosen],
                external_ids=[None if there is None else there.external_id for _, there in chosen],
                places=[None if there is None else self._place(there) for _, there in chosen],
            )
            self.result.repaired = len(rows)
            run(connection, notify.NOTIFY_WORK)

    def _tell(self, connection: Connection, before: dict[Any, Any]) -> None:
        self.result.unmanaged = sum(1 for drift in self.result.drift if drift.kind == "unmanaged")
        self.result.persistent = sum(1 for drift in self.result.drift if drift.status == "persistent")
        wrong = [drift for drift in self.result.drift if drift.kind != "unmanaged"]
        self.result.verdict, self.result.reason = "drift" if wrong else "in_sync", None
        cause = f"{self._entity.name} {self._group}"
        news = [drift for drift in self.result.drift if _thing(drift.key, drift.kind, drift.external_id) not in before]
        outcomes.note(
            connection,
            self._entity,
            "drift",
            [
                (
                    drift.key,
                    {
                        "group": self._group,
                        "drift": drift.kind,
                        "status": drift.status,
                        "external_id": drift.external_id,
                        "sample": drift.sample,
                    },
                )
                for drift in news
            ],
        )
        if news:
            kinds = Counter(drift.kind for drift in self.result.drift)
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            self._tell_of_drift(connection, cause, f"{cause}: {counts}", self.result.drift)
        elif not wrong:
            alerts.resolve(connection, "drift", cause)
        persistent = [drift for drift in self.result.drift if drift.status == "persistent"]
        if any(before[_thing(drift.key, drift.kind, drift.external_id)].status != "persistent" for drift in persistent):
            self._tell_of_drift(
                connection,
                f"{cause}: persistent",
                f"{cause}: {len(persistent)} persistent, repair does not fix it",
                persistent,
            )
        elif not persistent:
            alerts.resolve(connection, "drift", f"{cause}: persistent")

    def _tell_of_drift(self, connection: Connection, cause: str, title: str, drift: Sequence[Drift]) -> None:
        alerts.tell(
            connection,
            "drift",
            cause,
            title,
            entity=self._entity.name,
            examples=[_example(each) for each in drift[:10]],
        )

    def _samples(
        self, connection: Connection, confirmed: Sequence[tuple[Suspect, Found | None]]
    ) -> list[list[dict[str, Any]]]:
        keys = [suspect.key for suspect, _ in confirmed]
        parts: dict[str, dict[str, Any]] = {}
        for row in run(connection, archive_queries.SELECT_PARTS_DATA, entity=self._entity.name, keys=keys):
            parts.setdefault(row.key, {})[row.part] = row.data
        return [self._sample(suspect, there, parts.get(suspect.key, {})) for suspect, there in confirmed]

    def _sample(self, suspect: Suspect, there: Found | None, parts: dict[str, Any]) -> list[dict[str, Any]]:
        ours: dict[str, Any] = {}
        if suspect.kind not in ("extra", "unmanaged"):
            try:
                ours = self._entity.mapping.payload(suspect.key, suspect.belongs_to or self._group, parts)
            except MappingFailed:
                ours = {}
        theirs = {} if there is None else there.fields
        differences: list[dict[str, Any]] = storable_json(
            mask_all([*self._differences_of_place(suspect, there), *self._entity.mapping.differences(ours, theirs)])
        )
        return differences

    def _differences_of_place(self, suspect: Suspect, there: Found | None) -> list[dict[str, Any]]:
        """Rows for the business group and the id, where these differ."""
        if there is None or suspect.kind in ("extra", "unmanaged"):
            return []
        group, known_id = suspect.belongs_to or self._group, suspect.known_id
        capabilities = self._entity.third_party.capabilities
        if self._is_by_listing(suspect):
            return differences_of_place(
                replace(capabilities, shows_group=True),
                group=group,
                external_id=known_id,
                found=replace(there, group=self._listed_in(suspect)),
            )
        return differences_of_place(capabilities, group=group, external_id=known_id, found=there)

    async def _delete_unmanaged(self, confirmed: Sequence[tuple[Suspect, Found | None]]) -> None:
        strangers = [suspect for suspect, _ in confirmed if suspect.kind == "unmanaged"]
        if self._settings.unmanaged != "delete" or self._repair != "auto":
            return
        cap = self._settings.deletions.cap(self.result.expected)
        if await self._db(lambda connection: self._tell_of_cap(connection, "unmanaged", len(strangers), cap)):
            return
        for suspect in strangers:
            try:
                await ended_in_order(self._delete_one_unmanaged(suspect))
            except CallFailed as failure:
                self.result.reason = f"unmanaged records could not be deleted now: {failure}"

    async def _delete_one_unmanaged(self, suspect: Suspect) -> None:
        """Deletes it unless it is ours by now; what becomes ours during the call is looked after by its push."""
        known = {"entity": self._entity.name, "key": suspect.key}
        grouped = self._entity.third_party.capabilities.group_in_address
        ours = await self._db(
            lambda connection: (
                run(
                    connection,
                    queries.SELECT_OURS_BY_NOW,
                    **known,
                    group=self._group,
                    grouped=grouped,
                    external_id=suspect.external_id,
                )[0].ours
            )
        )
        if ours:
            return
        item = Item(suspect.key, self._group, {}, suspect.external_id)
        there = await self._entity.third_party.read(item)
        if there is None or self._is_strangers(suspect, there):
            return
        try:
            await self._entity.third_party.delete(item)
        finally:  # one whose answer is lost can still land
            await self._db(
                lambda connection: run(
                    connection,
                    push_queries.MARK_OUTCOME_UNKNOWN,
                    entity=[self._entity.name],
                    key=[suspect.key],
                    external_id=[None],
                    in_flight_window=self._entity.system.in_flight_seconds,
                )
            )

    async def _end(self, *, reason: str | None = None) -> GroupValidation:
        if reason is None:
            await self._db(self._fits)
        else:
            await self._db(lambda connection: self._not_validated(connection, reason))
        return self.result

    def _fits(self, connection: Connection) -> None:
        self.result.verdict, self.result.reason = "in_sync", None  # again, where a deadlock undid the first try
        self._write_end(connection, compared_fully=False)

    def _not_validated(self, connection: Connection, reason: str) -> None:
        self.result.verdict, self.result.reason = "not_validated", reason
        self._write_end(connection, compared_fully=False)

    def _write_end(self, connection: Connection, *, compared_fully: bool) -> None:
        result = self.result
        open_drift = run(connection, queries.COUNT_OPEN_DRIFT, entity=result.entity, group=result.group)[0][0]
        if result.verdict == "in_sync" and open_drift:
            result.verdict = "drift"
            result.reason = (
                "1 difference found earlier is not known to be repaired yet"
                if open_drift == 1
                else (f"{open_drift} differences found earlier are not known to be repaired yet")
            )
        if result.verdict == "in_sync":
            result.reason = "; ".join(filter(None, (result.reason, self._reason_of_count()))) or None
        to_compare = result.verdict == "drift"
        self._count_dead(connection)
        run(
            connection,
            queries.INSERT_VALIDATION,
            entity=result.entity,
            group=result.group,
            verdict=result.verdict,
            reason=result.reason,
            expected=result.expected,
            counted=result.counted,
            ambiguous=result.ambiguous,
            compared=result.compared,
            drift=len(result.drift),
        )
        if result.verdict != "not_validated":
            run(
                connection,
                queries.MARK_GROUP_VALIDATED,
                entity=result.entity,
                group=result.group,
                compared_fully=compared_fully,
                drift=to_compare,
                every=self._settings.every,
            )

    def _reason_of_count(self) -> str | None:
        """Why the records that are there are not as many as expected, though no difference was found; None if they are.

        A full comparison counts the listing; the third party's own count may say something else.
        """
        result = self.result
        if result.counted is None:
            return None
        reasons = []
        if result.counted != result.expected:
            known = [
                f"{number} {what}"
                for number, what in (
                    (self._ambiguous, "in flight"),
                    (result.unmanaged, "unmanaged"),
                    (self._of_other_groups, "of other business groups"),
                )
                if number
            ]
            why = ", ".join(known) or "records were compared one by one, and changed meanwhile"
            reasons.append(f"{result.counted} counted, {result.expected} expected: {why}")
        if result.compared is not None and self._count_said not in (None, result.compared):
            reasons.append(f"'count' says {self._count_said}, and the listing shows {result.compared}")
        return "; ".join(reasons) or None

    def _count_dead(self, connection: Connection) -> None:
        """Names dead records in the verdict.

        They have an alert of their own, and comparing contents says nothing new about them, so they ask for no audit.
        """
        result = self.result
        counts = count_dead_of_group(connection, result.entity, result.group)
        result.ambiguous = max(0, self._ambiguous - counts.records)
        result.dead, result.discarded = counts.dead, counts.discarded
        result.dead_without_group = counts.without_group
        reasons = [result.reason] if result.reason else []
        if counts.dead:
            result.dead_records = list_dead_records(
                connection, DeadSelection(result.entity, group=result.group), _MAX_DEAD_EXAMPLES
            )
            on_hold = f", {counts.on_hold} of them on hold" if counts.on_hold else ""
            reasons.append(f"{count_text(counts.dead)}{on_hold}")
        if counts.without_group:
            reasons.append(f"{count_text(counts.without_group)} without a known business group")
        if result.verdict != "not_validated":
            result.verdict = "drift" if counts.dead else result.verdict
            result.reason = "; ".join(reasons) or None


def _kind(suspect: Suspect, there: Found | None) -> str:
    return "different" if suspect.kind == "missing" and there is not None else suspect.kind


def _identity(suspect: Suspect) -> tuple[str, str | None]:
    return suspect.key, suspect.external_id


def _example(drift: Drift) -> str:
    """A difference in a few words: its key, its kind, and what differs, where the record is there."""
    what = what_differs(drift.sample) if drift.kind in ("different", "stale", "duplicate") else ""
    return f"{drift.key} ({drift.kind}: {what})" if what else f"{drift.key} ({drift.kind})"


def _thing(key: str, kind: str, external_id: str | None) -> tuple[str, str, str | None]:
    """What a difference is known by again: what is put right and altered anew is stale then, and was different."""
    return key, "different" if kind == "stale" else kind, external_id


def _ids(
    confirmed: Sequence[tuple[Suspect, Found | None]], before: Collection[tuple[str, str, str | None]]
) -> list[str | None]:
    """The ids that differences are noted under.

    A record that is missing again after it was made again has another id each time. It is noted without one, so that a
    record which vanishes after every repair is known to have come back.
    """
    missing_before = {key for key, kind, _ in before if kind == "missing"}

    def of(suspect: Suspect, there: Found | None) -> str | None:
        if there is not None:
            return there.external_id
        known = suspect.key not in missing_before or (suspect.key, "missing", suspect.external_id) in before
        return suspect.external_id if known else None

    return [of(suspect, there) for suspect, there in confirmed]


def _same(one: Any, other: Any) -> bool:
    return (None if one is None else bytes(one)) == (None if other is None else bytes(other))
