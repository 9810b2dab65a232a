"""Tries out the third party of an entity: its account, listing, look-ups, values and counts, and filled-in writes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sync_orchestrator.adapters.containment import ContainedThirdParty
from sync_orchestrator.conformance.field_forms import FieldDifference, find_differences, find_form_differences
from sync_orchestrator.conformance.live_check.entity_steps import EntitySteps, Stopped
from sync_orchestrator.conformance.live_check.pages import all_found, pages_of, read_first_page, read_some_pages
from sync_orchestrator.core.ports import Found, Item, Json, PartRead
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.errors import CallFailed, MappingFailed

_MAX_COMPARED = 5


class ThirdPartySteps(EntitySteps):
    """The steps of an entity's third party."""

    async def run(self, found: str | None, row: PartRead | None) -> None:
        """All of them, with a business group and a record of it, as ``SourceSteps.run`` returns them."""
        if found is None:
            self._skip_step(
                self._system, "list", "it cannot be asked without a business group", "name one with --group"
            )
        elif f"third_parties.{self._system}" not in self._reached:
            self._skip_step(self._system, "list", "its login failed")
        else:
            await self._check_third_party(found, row)

    async def _check_third_party(self, group: str, row: PartRead | None) -> None:
        system, place = self._system, f"entities.{self._name}.third_party"
        await self._check_account(system)
        found: list[Found] = []
        is_listed = False
        with suppress(Stopped):
            async with self._run_step(system, "list", f"{place}.list"):
                pages = [rows async for rows in read_some_pages(self._third_party.pages(group))]
            found, is_listed = [record for rows in pages for record in rows], True
            self._ok(system, "list", f"{pages_of(pages, 'records')} in '{group}'")
            await self._small_pages(
                system, f"{place}.list", [record.key for record in found], sum(bool(page) for page in pages), group
            )
            if self._by_class:
                self._skip_step(system, "filter", "a class of yours sees to it", f"try `conformance {self._name}`")
            elif self._entity.third_party.filter_check.off:
                self._skip_step(system, "filter", "its check is off", f"see {place}.filter_check")
            elif found:
                self._ok(system, "filter", "it is obeyed: an impossible group brings nothing")
            else:
                self._skip_step(system, "filter", "nothing is there yet that an ignored filter could bring")
        ours = await self._find_ours(found)
        record = ours[0][0] if ours else next((record for record in found if record.key is not None), None)
        if record is not None:
            await self._read_back(record, group)
        key = row.key if row is not None else None
        if ours or (key is None and record is not None):
            assert record is not None
            key = record.key
        if key is not None and self._third_party.capabilities.can_lookup:
            with suppress(Stopped):
                async with self._run_step(system, "lookup", f"{place}.lookup"):
                    records = await self._third_party.lookup(key, group)
                if ours and not any(each.external_id == record.external_id for each in records):  # type: ignore[union-attr]
                    self._fail_step(
                        system,
                        "lookup",
                        f"{key} is listed, and a search by the key does not find it",
                        f"see {place}.lookup",
                    )
                else:
                    self._ok(system, "lookup", f"{len(records)} records have the key {key}")
        if is_listed:  # else the failed listing says why nothing is compared
            await self._compare_values(found, ours, group)
        await self._check_count(
            system, f"{place}.count", self._third_party.count, group, lambda: all_found(self._third_party, group)
        )
        await self._their_groups()
        await self._check_writes(row, group)

    async def _check_account(self, system: str) -> None:
        """Whose account the third party is called with, where it can be asked for; once for all of its entities."""
        if system in self._accounts:
            return
        account: str | None = ""
        with suppress(Stopped):
            async with self._run_step(system, "account", f"third_parties.{system}.account"):
                account = await self._third_party.account()
            if account is not None:
                self._ok(system, "account", f"calls are made as account {account}")
        if account is not None:
            self._accounts.add(system)

    async def _find_ours(self, found: Sequence[Found]) -> list[tuple[Found, PartRead]]:
        """Records there whose part the owner has, as the list or else a read by key shows it."""
        keyed = [record for record in found if record.key is not None]
        ours = [(record, self._trial.rows[record.key]) for record in keyed if record.key in self._trial.rows]
        owner = self._sources[self._entity.owner]
        if not ours and keyed and owner.can_read and f"sources.{self._entity.owner}" in self._reached:
            with suppress(CallFailed):  # keys of others need not be of a form that the source takes
                rows = {row.key: row for row in await owner.read_many([str(each.key) for each in keyed[:20]])}
                ours = [(each, rows[each.key]) for each in keyed[:20] if each.key in rows]
        return [(record, row) for record, row in ours if row.problem is None and not row.deleted][:_MAX_COMPARED]

    async def _read_back(self, record: Found, group: str) -> None:
        """A record that is listed, read by its id: validation and look-ups believe both."""
        system, place = self._system, f"entities.{self._name}.third_party.read"
        with suppress(Stopped):
            async with self._run_step(system, "read", place):
                seen = await self._third_party.read(Item(record.key or "", group, {}, record.external_id))
            if seen is None:
                self._fail_step(
                    system,
                    "read",
                    f"it lists {record.key}, and has nothing under the id {record.external_id}",
                    f"see {place}, and {place.removesuffix('read')}id",
                )
            elif seen.key != record.key:
                self._fail_step(system, "read", f"a read of {record.key} shows {seen.key}", f"see {place}")
            elif differing := [
                name
                for name, value in seen.fields.items()
                if compute_digest(value) != compute_digest(record.fields.get(name))
            ]:
                self._fail_step(
                    system,
                    "read",
                    f"{record.key} differs in the list and by its id in {', '.join(differing[:5])}",
                    f"see {place}; if the list has less, set {place.removesuffix('read')}list_shows: ids",
                )
            else:
                self._ok(system, "read", f"{record.key} is by its id as in the list")

    async def _compare_values(self, found: Sequence[Found], ours: Sequence[tuple[Found, PartRead]], group: str) -> None:
        """Values in both directions: what is there, against what would be sent for it."""
        system, place = self._system, f"entities.{self._name}.third_party"
        if not found:
            self._skip_step(
                system,
                "values",
                "nothing is there yet to compare with",
                "check again after the first full sync, or try "
                f" `sync-orchestrator conformance {self._name}` on a test system",
            )
            return
        if not ours:
            forms = [] if self._trial.payload is None else find_form_differences(self._trial.payload, found)
            self._skip_step(
                system,
                "values",
                "no record there is one of the sources'" + (f"; of another form: {'; '.join(forms)}" if forms else ""),
                f"see {place}.fields, if these values do not mean the same" if forms else "",
            )
            return
        by_field: dict[str, FieldDifference] = {}
        for record, row in ours:
            with suppress(CallFailed, MappingFailed):
                payload = await self._payload_of(row, record.group or row.group or group)
                for difference in find_differences(self._entity, payload, record):
                    known = by_field.setdefault(difference.field, difference)
                    if difference.never_matches and not known.never_matches:
                        by_field[difference.field] = difference
        never = [each for each in by_field.values() if each.never_matches]
        for each in never:
            self._fail_step(system, "values", f"{each}; a write never makes them equal", f"{place}: {each.hint}")
        if never:
            return
        keys = ", ".join(str(record.key) for record, _ in ours)
        if by_field:
            self._ok(system, "values", f"{keys}: a full sync would change {'; '.join(map(str, by_field.values()))}")
        else:
            self._ok(system, "values", f"{keys}: as they would be sent, {len(self._entity.mapping)} fields each")

    async def _payload_of(self, row: PartRead, group: str) -> Json:
        parts: dict[str, Any] = {self._entity.owner: row.data}
        for part, source in self._sources.items():
            if part != self._entity.owner:
                seen = await source.read(row.key) if source.can_read else None
                parts[part] = None if seen is None else seen.data
        return Mapping(self._entity.mapping).build_payload(row.key, group, parts)

    async def _their_groups(self) -> None:
        """A page of one business group of each kind of name, at the third party."""
        done = []
        for group in self._trial.other_groups:
            with suppress(Stopped):
                async with self._run_step(
                    self._system, "groups", f"entities.{self._name}.third_party.list", f"'{group}': "
                ):
                    page = await read_first_page(self._third_party.pages(group))
                done.append(f"{len(page or ())} in '{group}'")
        if done:
            self._ok(self._system, "groups", f"a page of other kinds of names: {', '.join(done)}")

    async def _check_writes(self, row: PartRead | None, group: str) -> None:
        """The writing calls, filled in with a record and what it refers to; nothing is sent."""
        system, filled = self._system, None
        if row is not None and self._trial.payload is not None and isinstance(self._third_party, ContainedThirdParty):
            with suppress(Stopped):
                async with self._run_step(system, "fill in", f"entities.{self._name}.third_party"):
                    filled = await self._third_party.fill_in(
                        Item(
                            row.key,
                            row.group or group,
                            self._trial.payload,
                            None if self._third_party.capabilities.assigns_ids else row.key,
                            f"{self._name}/{row.key}/0",
                        )
                    )
        if filled is not None and filled.references:
            self._ok(
                system,
                "fill in",
                "; ".join((*filled.calls, *(f"{name} is {value}" for name, value in filled.references.items()))),
            )
        capabilities = self._third_party.capabilities
        is_limited = not (capabilities.can_create and capabilities.can_delete)
        self._skip_step(
            system,
            "write",
            "not tried: this check writes nothing",
            "conformance does not try it either: it creates and deletes records, which only others do there"
            if is_limited
            else f"to try writes on a test system, use `sync-orchestrator conformance {self._name}`",
        )
