"""Adopts what a third party holds, after a restore on either side or a change of the account, and lets pushes go on.

For each business group the archive is filled from the sources and the third party is listed. Then records are linked by
key: a record takes over the id and the content that the third party shows. Nothing is sent before all of that is done.
The third party's other records are left alone. ``adoption_links.py`` decides what each record counts as,
``core/systems/suspension.py`` says what stops the pushes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Row

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport, push_group
from sync_orchestrator.core.groups.concurrency import GROUPS_SYNCED_AT_ONCE
from sync_orchestrator.core.groups.registry import discover_groups
from sync_orchestrator.core.ledger.finishing import finish_reached
from sync_orchestrator.core.operations.adoption_links import Listed, Standing, link_record
from sync_orchestrator.core.operations.adoption_report import Adoption, GroupListing
from sync_orchestrator.core.operations.queries import adoption as adoption_queries
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.push.account_check import read_account
from sync_orchestrator.core.push.claims import read_parts
from sync_orchestrator.core.systems.installation import is_about_database
from sync_orchestrator.core.systems.suspension import lift_suspension, read_suspended_at, suspend, suspension_of
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import CallFailed, DeletionsHeld, GroupBusy, MappingFailed

T = TypeVar("T")
Progress = Callable[[str], None]
"""Receives one line of what is going on."""

BATCH_SIZE = 1000
_WAIT_STEP_SECONDS = 1.0
_MAX_SEARCH_LAG_SECONDS = 60.0

_listed = CrashPoint("adoption.listed")
_linked = CrashPoint("adoption.batch_linked")
_before_commit = CrashPoint("adoption.before_commit")


async def adopt(
    context: Context,
    entities: Sequence[EntityContext],
    *,
    groups: Sequence[str] | None = None,
    recreate_missing: bool = False,
    allow_deletions: int | None = None,
    progress: Progress = lambda line: None,
) -> list[Adoption]:
    """Adopts entities one after the other; pushes go on when all entities of a third party are adopted.

    Then the sources are checked, with repair, and the business groups are validated in full. ``groups`` limits the
    work to some groups; linking waits until all of them are listed. ``recreate_missing`` allows more acknowledged
    records to be missing than the cap on deletions. Raises CallFailed where the owner or the account cannot be asked.
    """
    suspended_here = await asyncio.to_thread(
        in_transaction, context.engine, lambda connection: _suspend_all(connection, entities)
    )
    results = []
    for entity in entities:
        needed = entities if entity.system_name in suspended_here else context.of_system(entity.system_name)
        work = _Adoption(
            context,
            entity,
            [each.name for each in needed if each.system_name == entity.system_name],
            recreate_missing,
            allow_deletions,
            progress,
        )
        results.append(await work.run(groups))
    lifted = {result.system for result in results if result.lifted}
    for entity, result in zip(entities, results, strict=True):
        if result.system in lifted:
            await _prove_in_sync(context, entity, result, progress)
    return results


def _suspend_all(connection: Connection, entities: Sequence[EntityContext]) -> set[str]:
    """Suspends the third parties of entities that an operator adopts unasked; returns their names."""
    systems = {entity.system_name for entity in entities}
    chosen = {name for name in systems if suspension_of(connection, name) is None}
    for name in sorted(chosen):
        adopted = ", ".join(entity.name for entity in entities if entity.system_name == name)
        suspend(connection, name, f"an operator adopts {adopted}")
    return chosen


class _Overtaken(Exception):
    """Nothing more may be linked by this adoption."""


class _Adoption:
    def __init__(
        self,
        context: Context,
        entity: EntityContext,
        needed: Sequence[str],
        recreate_missing: bool,
        allow_deletions: int | None,
        progress: Progress,
    ) -> None:
        self._context = context
        self._entity = entity
        self._needed = list(needed)
        self._recreate_missing = recreate_missing
        self._allow_deletions = allow_deletions
        self._progress = progress
        self._since: datetime | None = None
        self._reason = ""
        self._account: str | None = None
        self._due: set[str] = set()
        self.result = Adoption(entity.name, entity.system_name)

    async def _run_in_transaction(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(in_transaction, self._context.engine, work)

    async def run(self, groups: Sequence[str] | None) -> Adoption:
        await self._run_in_transaction(self._read_suspension)
        self._account = await read_account(self._context, self._entity.system_name)
        await discover_groups(self._context, self._entity)
        await self._until_nothing_is_under_way()
        left = await self._list_groups(groups)
        if left:
            failed = sum(1 for listing in self.result.groups if listing.error is not None)
            self.result.stopped = (
                f"{failed} business groups could not be adopted"
                if failed
                else f"{len(left)} business groups are not listed yet, such as {left[0]}"
            )
            return self.result
        _listed()
        if not self._entity.third_party.capabilities.can_lookup:
            await self._read_missing()
        try:
            if (stopped := await self._run_in_transaction(self._too_many_missing)) is not None:
                self.result.stopped = stopped
                return self.result
            began = await self._link_all()
            await self._run_in_transaction(lambda connection: self._finish_linking(connection, began))
        except _Overtaken as overtaken:
            self.result.stopped = str(overtaken)
        return self.result

    def _lock_suspension(self, connection: Connection) -> None:
        """Holds the suspension until the transaction ends, so that listing and linking belong together.

        Raises _Overtaken where it is another one by now, or another adoption is under way.
        """
        suspended_at, _ = read_suspended_at(connection, self._entity.system_name, locked=True)
        if suspended_at != self._since:
            raise _Overtaken("pushes were suspended again" if suspended_at else "another adoption has ended")
        rows = run(connection, adoption_queries.LIST_GROUPS_TO_ADOPT, entity=self._entity.name, since=self._since)
        if any(row.group_key in self._due and not row.listed for row in rows):
            raise _Overtaken("another adoption of the same entity is under way")

    def _read_suspension(self, connection: Connection) -> None:
        self._since, self._reason = read_suspended_at(connection, self._entity.system_name)

    # Listing ----------------------------------------------------------------------------------------------------------

    async def _until_nothing_is_under_way(self) -> None:
        """Calls that began before the suspension may still take effect, and show in the listing after that."""
        waited = False
        while (seconds := await self._run_in_transaction(self._seconds_under_way)) > 0:
            self._progress(f"{self._entity.name}: calls may be under way, waiting {seconds:.0f} s")
            waited = True
            await asyncio.sleep(min(seconds, _WAIT_STEP_SECONDS))
        if waited:
            await asyncio.sleep(min(self._entity.system.search_lag, _MAX_SEARCH_LAG_SECONDS))

    def _seconds_under_way(self, connection: Connection) -> float:
        in_flight_window = self._entity.system.in_flight_seconds
        known = float(
            run(
                connection,
                adoption_queries.COUNT_CALLS_IN_FLIGHT,
                entity=self._entity.name,
                in_flight_window=in_flight_window,
            )[0].seconds
        )
        if not is_about_database(self._reason):
            return known
        suspension = suspension_of(connection, self._entity.system_name)  # calls that the database forgot
        return max(known, in_flight_window - suspension.seconds if suspension else 0.0)

    async def _list_groups(self, chosen: Sequence[str] | None) -> list[str]:
        """Lists the chosen groups, or all; returns those that are still to be listed."""
        known = await self._run_in_transaction(
            lambda connection: run(
                connection, adoption_queries.LIST_GROUPS_TO_ADOPT, entity=self._entity.name, since=self._since
            )
        )
        due = {
            row.group_key: bool(row.listed)
            for row in known
            if row.managed or is_about_database(self._reason) or row.group_key in (chosen or ())
        }
        self._due = set(due)
        places = asyncio.Semaphore(GROUPS_SYNCED_AT_ONCE)

        async def list_in_turn(group: str) -> GroupListing:
            async with places:
                return await self._list_group(group)

        self.result.groups = list(
            await asyncio.gather(*(list_in_turn(group) for group in due if chosen is None or group in chosen))
        )
        for listing in self.result.groups:
            due[listing.group] = listing.error is None
        return [group for group, listed in due.items() if not listed]

    async def _list_group(self, group: str) -> GroupListing:
        result = GroupListing(group)
        try:
            await full_sync(self._context, self._entity, group, allow_deletions=self._allow_deletions, patience=0)
        except DeletionsHeld as held:
            result.held = str(held)
        except (CallFailed, GroupBusy) as failure:
            result.error = f"its sources could not be listed: {failure}"
        if result.error is None:
            try:
                await self._list_third_party(result)
            except CallFailed as failure:
                result.error = f"the third party could not be listed: {failure}"
        self._progress(f"{self._entity.name} {group}: {result.error or f'{result.listed} records are there'}")
        return result

    async def _list_third_party(self, result: GroupListing) -> None:
        known = {"entity": self._entity.name, "group": result.group}
        await self._run_in_transaction(lambda connection: _delete_listing(connection, **known))
        async for page in self._entity.third_party.pages(result.group):
            await self._store_page(page, result.group)
            result.listed += len(page)
        await self._run_in_transaction(lambda connection: run(connection, adoption_queries.MARK_GROUP_LISTED, **known))

    async def _store_page(self, page: Sequence[Found], group: str) -> None:
        """Keeps records of the third party, each in the group that it names."""
        columns = {
            "group": [found.group or group for found in page],
            "external_id": [found.external_id for found in page],
            "key": [found.key for found in page],
            "digest": [self._entity.digest_of_found(found, found.group or group) for found in page],
        }
        if page:
            await self._run_in_transaction(
                lambda connection: run(connection, adoption_queries.ADD_TO_LISTING, entity=self._entity.name, **columns)
            )

    async def _read_missing(self) -> None:
        """Reads records that no listing shows under the ids that they had: no search will find them before a create.

        A listing that others change while it is read can leave a record out.
        """
        if not self._entity.third_party.capabilities.assigns_ids:
            return
        limit = asyncio.Semaphore(self._entity.system.concurrency)

        async def read_in_turn(row: Row[Any]) -> Found | None:
            async with limit:
                return await self._entity.third_party.read(Item(row.key, row.group_key, {}, row.external_id))

        after = ""
        while rows := await self._run_in_transaction(
            lambda connection, after=after: run(  # type: ignore[misc]
                connection,
                adoption_queries.COUNT_MISSING_WITH_ID,
                entity=self._entity.name,
                after=after,
                limit=BATCH_SIZE,
            )
        ):
            found = await asyncio.gather(*(read_in_turn(row) for row in rows))
            for row, record in zip(rows, found, strict=True):
                if record is not None and record.key == row.key:
                    await self._store_page([record], row.group_key)
            after = rows[-1].key

    def _too_many_missing(self, connection: Connection) -> str | None:
        self._lock_suspension(connection)
        row = run(connection, adoption_queries.COUNT_MISSING, entity=self._entity.name)[0]
        cap = self._entity.settings.validation.deletions.group_cap(row.acknowledged)
        if self._recreate_missing or row.missing <= cap:
            return None
        return (
            f"{row.missing} of {row.acknowledged} acknowledged records are not at the third party, more than the "
            f"cap of {cap}, such as {', '.join(row.examples[:3])}. Nothing was linked. Make sure that the account "
            "sees all records, then run again with --recreate-missing"
        )

    # Linking ----------------------------------------------------------------------------------------------------------

    async def _link_all(self) -> datetime:
        """Links in batches, in key order; returns when it began."""
        self._progress(f"{self._entity.name}: linking by key")
        began: datetime = await self._run_in_transaction(
            lambda connection: run(connection, "SELECT sync.clock() AS now")[0].now
        )
        after: str | None = ""
        outcomes: Counter[str] = Counter()
        while after is not None:
            after, linked = await self._run_in_transaction(
                lambda connection, after=after: self._link_batch(  # type: ignore[misc]
                    connection, adoption_queries.SELECT_RECORDS_BESIDE_LISTING, after=after, limit=BATCH_SIZE
                )
            )
            outcomes.update(linked)
            _linked()
        self.result.linked = dict(sorted(outcomes.items()))
        return began

    def _link_batch(self, connection: Connection, statement: str, **chosen: object) -> tuple[str | None, Counter[str]]:
        """Links some records; returns the last key, or None where there were none, and what follows for them."""
        self._lock_suspension(connection)
        capabilities = self._entity.third_party.capabilities
        rows = run(connection, statement, entity=self._entity.name, grouped=capabilities.group_in_address, **chosen)
        if not rows:
            return None, Counter()
        wanted = self._digest_wanted(connection, rows)
        links = [
            link_record(
                _build_standing(row, wanted.get(row.key)), _build_listed(row), can_look_up=capabilities.can_lookup
            )
            for row in rows
        ]
        run(
            connection,
            adoption_queries.LINK_RECORDS,
            entity=self._entity.name,
            keys=[row.key for row in rows],
            external_id=[each.external_id for each in links],
            digest=[each.digest for each in links],
            applied_group=[each.group for each in links],
            revision=[each.revision for each in links],
            look_up=[each.look_up for each in links],
        )
        finish_reached(
            connection,
            self._entity.name,
            [row.key for row, each in zip(rows, links, strict=True) if each.revision == row.revision],
        )
        return str(rows[-1].key), Counter(each.outcome for each in links)

    def _digest_wanted(self, connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, bytes]:
        """By key the digest of what would be sent now, for records that the third party shows."""
        chosen = [row for row in rows if row.ready and not row.deleted and row.there_id is not None]
        name = self._entity.name
        parts = read_parts(connection, [name] * len(chosen), [row.key for row in chosen])
        wanted = {}
        for row in chosen:
            try:
                payload = self._entity.mapping.build_payload(row.key, row.group_key, parts.get((name, row.key), {}))
                wanted[row.key] = self._entity.mapping.digest_of_ours(payload)
            except (MappingFailed, ValueError):
                continue  # its push reports that
        return wanted

    def _finish_linking(self, connection: Connection, began: datetime) -> None:
        """Links what the archive received while it was linked, and lets pushes go on where nothing else is due."""
        name, system = self._entity.name, self._entity.system_name
        self._link_batch(connection, adoption_queries.SELECT_CHANGED_BESIDE_LISTING, since=began)
        self._report_leftovers(connection)
        run(connection, adoption_queries.MARK_ADOPTED, entity=name)
        _delete_listing(connection, entity=name, group=None)
        self.result.still_to_adopt = [
            row.name
            for row in run(connection, adoption_queries.SELECT_NOT_ADOPTED, entities=self._needed, since=self._since)
        ]
        if not self.result.still_to_adopt:
            self.result.lifted = lift_suspension(connection, system, account=self._account)
        _before_commit()

    def _report_leftovers(self, connection: Connection) -> None:
        unmanaged = run(connection, adoption_queries.LIST_UNMANAGED, entity=self._entity.name)[0]
        self.result.unmanaged, self.result.unmanaged_examples = unmanaged.n, list(unmanaged.examples)
        self.result.duplicates = {
            row.key: list(row.external_ids)
            for row in run(connection, adoption_queries.LIST_DUPLICATES, entity=self._entity.name)
        }


def _delete_listing(connection: Connection, entity: str, group: str | None) -> None:
    run(connection, adoption_queries.SELECT_NOT_LISTED, entity=entity, group=group)
    run(connection, adoption_queries.DELETE_LISTING, entity=entity, group=group)


def _build_standing(row: Row[Any], wanted: bytes | None) -> Standing:
    return Standing(row.group_key, row.revision, row.deleted, row.applied_revision != row.revision, wanted)


def _build_listed(row: Row[Any]) -> Listed | None:
    return None if row.there_id is None else Listed(row.there_id, row.there_group, bytes(row.there_digest))


async def _prove_in_sync(context: Context, entity: EntityContext, result: Adoption, progress: Progress) -> None:
    """Pushes what is out of sync, makes up for lost notifications, and validates each group in full."""
    from sync_orchestrator.core.validation.validate import validate  # imports pandas, which only this needs

    loop = asyncio.get_running_loop()
    for listing in result.groups:
        progress(f"{entity.name} {listing.group}: checking the sources and validating")
        result.checks.append(await check_sources(context, entity, listing.group, repair="auto"))
        await drain(context, linger=0)
        await push_group(
            context, StepReport(entity.name, listing.group), loop.time() + context.config.limits.drain_seconds, None
        )
        await asyncio.sleep(min(entity.system.search_lag, _MAX_SEARCH_LAG_SECONDS))
        result.validations.append(await validate(context, entity, listing.group, full=True))
