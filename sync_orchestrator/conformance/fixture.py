"""What behaviours of third parties are tried with: an adapter, records with keys of our own, and a clean-up of them."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.composition import mapping_of
from sync_orchestrator.config import EntitySettings, ThirdPartySettings
from sync_orchestrator.conformance.field_forms import judge_field
from sync_orchestrator.conformance.report import Differs, Skipped
from sync_orchestrator.conformance.samples import Samples
from sync_orchestrator.core.ports import Found, Item, Json, ThirdParty
from sync_orchestrator.core.push.attempt import push_payload
from sync_orchestrator.core.push.claims import PushClaim
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.values.normalization import build_normalizers
from sync_orchestrator.errors import CallFailed, ConfigError, Failure

T = TypeVar("T")
Rebuilt = Callable[..., ThirdParty]

_REFERENCE = re.compile(r"reference '([^']+)'")
_LOOK_AGAIN = 0.1
_MAX_MOVE_SECONDS = 3600
_SHOWN = 5


class Bench:
    """One entity's collection at a third party. All that it makes is remembered, and deleted in the end."""

    def __init__(
        self,
        name: str,
        entity: EntitySettings,
        system: ThirdPartySettings,
        third_party: ThirdParty,
        samples: Samples,
        other_group: str | None,
        rebuilt: Rebuilt,
        *,
        odd_keys: bool = False,
    ) -> None:
        self.name = name
        self.entity = entity
        self.system = system
        self.third_party = third_party
        self.capabilities = third_party.capabilities
        self.samples = samples
        self.mapping = mapping_of(entity)
        self.group = samples.group
        self.other_group = other_group
        self.rebuilt = rebuilt
        self._codecs = Codecs(entity.third_party.fields, tuple(entity.mapping))
        self.odd_keys = odd_keys
        self._normalizers = build_normalizers(entity.third_party.fields)
        self._numbers = itertools.count(1)
        self._made: dict[tuple[str, str | None], set[str | None]] = {}
        self._tidied: set[tuple[str, str | None]] = set()

    def make_item(self, end: str = "", *, group: str | None = None, change: int = 0, **fields: object) -> Item:
        """A record that is not there yet, with a key that nobody has; ``end`` is what its key ends with."""
        key, group = f"{self.samples.prefix}{next(self._numbers)}{end}", group or self.group
        payload = self.samples.build_payload(key, group, change, **fields)
        return Item(
            key, group, payload, None if self.capabilities.assigns_ids else key, f"{self.name}/{key}/{group or ''}/0"
        )

    def change_item(self, item: Item, change: int, **fields: object) -> Item:
        """The same record with other content. Raises Skipped where the sample has nothing to change."""
        if not self.samples.changeable:
            raise Skipped("the sample has no field to change: give two samples")
        return replace(item, payload=self.samples.build_payload(item.key, item.group, change, **fields))

    async def create_record(self, item: Item, third_party: ThirdParty | None = None) -> Item:
        """Makes it, and knows its id from then on."""
        is_first = (item.key, item.group) not in self._made
        ids = self._made.setdefault((item.key, item.group), set())
        ids.add(item.external_id)
        try:
            external_id = await (third_party or self.third_party).create(item)
        except CallFailed as failure:
            if is_first and not failure.unknown and failure.external_id is None and failure.status is not None:
                self._made.pop((item.key, item.group), None)  # it was refused: there is nothing to look for
            raise
        ids.add(external_id)
        return replace(item, external_id=external_id)

    async def update_record(self, item: Item) -> str | None:
        """Overwrites it."""
        self._made.setdefault((item.key, item.group), set()).add(item.external_id)
        return await self.third_party.update(item)

    async def move_record(self, item: Item, group: str) -> Item:
        """Moves a record to another business group by the push that the core would make. Returns it as it is then.

        Raises Differs where the core would make no call, and CallFailed.
        """
        payload = self.samples.build_payload(item.key, group)
        acknowledged = self._build_claim(item)
        claim = replace(acknowledged, group=group, revision=2, outcome_unknown_groups=(group,))
        ids = self._made.setdefault((item.key, group), set())
        ids.add(item.external_id)
        pushed = await push_payload(self, claim, payload)
        ids.add(pushed.external_id)
        if pushed.failure is not None:
            raise pushed.failure
        if not pushed.calls.called:
            raise Differs(
                "no call is made: neither a mapped field nor a template of a write holds the group",
                "a call that moves the record",
                f"put {{{{ group }}}} into the calls that write: {self.point_to_fix('update', 'update')}",
            )
        return replace(item, group=group, payload=payload, external_id=pushed.external_id)

    def _build_claim(self, item: Item) -> PushClaim:
        """A record as the core would claim it after it was acknowledged."""
        return PushClaim(
            entity=self.name,
            key=item.key,
            group=item.group,
            revision=1,
            deleted=False,
            applied_digest=self.mapping.digest_of_ours(item.payload),
            applied_group=item.group,
            external_id=item.external_id,
            attempts=0,
            rejected_digest=None,
            token=0,
            ever_applied=True,
            outcome_unknown_until=None,
            outcome_unknown_for=None,
            deadline=time.monotonic() + _MAX_MOVE_SECONDS,
            acknowledged_at=time.time_ns() // 1000,
            waiting_for=0,
            parts={},
            applied_revision=1,
        )

    async def check_shown(self, item: Item) -> Found:
        """What is under its id, which must be what was written. Raises Differs."""
        found = await self.poll_until(
            lambda: self.third_party.read(item),
            lambda found: found is not None and not self.list_differences(item, found),
        )
        if found is None:
            raise Differs(
                f"nothing is under the id {item.external_id}",
                f"the record {item.key}",
                self.point_to_fix("read", "read"),
            )
        self.hold_same(item, found, "what was written")
        return found

    def hold_same(self, item: Item, found: Found, expected: str) -> None:
        """Raises Differs where a record shows something else than was written."""
        if not (wrong := self.list_differences(item, found)):
            return
        fields = self.differing_fields(item, found) if found.key == item.key else []
        raise Differs("; ".join(wrong[:_SHOWN]), expected, self._hint_for(fields, item, found), fields=fields)

    def differing_fields(self, item: Item, found: Found) -> list[str]:
        """The names of the fields that a record shows otherwise than they were written."""
        return [
            name for name, value in item.payload.items() if self._values_differ(name, value, found.fields.get(name))
        ]

    def _hint_for(self, fields: Sequence[str], item: Item, found: Found) -> str:
        """The settings that end such differences, or else where each field is mapped, written and read."""
        if not fields or self.system.adapter is not None:
            return ""
        place = f"entities.{self.name}.third_party"
        codecs = self.entity.third_party.fields
        hints = {
            name: judge_field(name, codecs.get(name), item.payload[name], found.fields.get(name)).hint
            for name in fields[:_SHOWN]
        }
        by = self._written_by()
        return "; ".join(
            f"{place}: {hint}" if hint else f"see {place}.fields.{name}, and what {by} sends"
            for name, hint in hints.items()
        )

    def _written_by(self) -> str:
        target = self.entity.third_party
        writes = ("create", "bulk_create", "update", "bulk_update")
        return next(name for name in writes if getattr(target, name) is not None)

    def list_differences(self, item: Item, found: Found) -> list[str]:
        """What a record shows otherwise than it was written."""
        wrong = [] if found.key == item.key else [f"its key is {found.key!r}, written was {item.key!r}"]
        sent = self._codecs.as_sent(item.payload)
        return wrong + [
            f"{name}: {found.fields.get(name)!r} came, {value!r} was written"
            for name, value in item.payload.items()
            if self._values_differ(name, sent[name], found.fields.get(name))
        ]

    def is_kept(self, name: str, written: object, came: object) -> bool:
        """Whether a value came back as it was written, or only changed as ``normalize`` of its field allows."""
        if came == written and isinstance(came, bool) == isinstance(written, bool):
            return True
        return name in self._normalizers and not self._values_differ(name, written, came)

    def _values_differ(self, name: str, ours: object, theirs: object) -> bool:
        known = self._normalizers.get(name)
        if known is not None:
            ours, theirs = known(ours), known(theirs)
        return compute_digest(ours) != compute_digest(theirs)

    async def list_records(self, group: str | None = None, third_party: ThirdParty | None = None) -> list[Found]:
        """Everything that a business group shows."""
        return [found for page in await self.list_pages(group, third_party) for found in page]

    async def list_pages(self, group: str | None = None, third_party: ThirdParty | None = None) -> list[list[Found]]:
        """Returns all pages of a business group, by default of the one that is listed."""
        return [page async for page in (third_party or self.third_party).pages(group or self.listed_group)]

    @property
    def listed_group(self) -> str:
        """Raises Skipped where no business group is known."""
        if self.group is None:
            raise Skipped("no business group is known: name one with --group")
        return self.group

    async def of_key(self, item: Item) -> list[Found]:
        """Every record with its key, as the search or else the listing shows it."""
        if self.capabilities.can_lookup:
            return await self.third_party.lookup(item.key, item.group)
        return [found for found in await self.list_records(item.group) if found.key == item.key]

    async def poll_until(self, look: Callable[[], Awaitable[T]], fits: Callable[[T], object]) -> T:
        """What a look shows: as soon as it fits, or else when ``search_lag`` is over."""
        end = time.monotonic() + self.system.search_lag
        while True:
            seen = await look()
            if fits(seen) or time.monotonic() >= end:
                return seen
            await asyncio.sleep(_LOOK_AGAIN)

    async def wait_for_search(self) -> None:
        """Waits until a search would show everything that is there."""
        await asyncio.sleep(self.system.search_lag)

    def point_to_fix(self, section: str, method: str) -> str:
        """Where to fix what a call does."""
        if self.system.adapter is not None:
            return f"see {self.system.adapter}, its {method}"
        return f"see entities.{self.name}.third_party.{section}"

    def section_of(self, call: str, detail: str = "") -> str:
        """The section of ``sync.yaml`` that says how a method of the adapter is carried out."""
        if (reference := _REFERENCE.match(detail)) is not None:
            return f"references.{reference[1]}"
        target = self.entity.third_party
        if call == "create" and not self.capabilities.assigns_ids and target.upsert == "update":
            call = "update"
        if call in ("create", "update", "delete") and getattr(target, call) is None:
            return f"bulk_{call}"
        return "list" if call == "pages" else call

    def refuse_without_group(self) -> None:
        """Raises ConfigError where no business group is known and a call cannot be made without one."""
        target = self.entity.third_party
        calls = [
            ("create", target.create),
            ("update", target.update),
            ("delete", target.delete),
            ("read", target.read),
            ("lookup", target.lookup),
        ]
        named = [f"{name}" for name, call in calls if call is not None and "group" in call.collect_template_names()]
        if self.group is None and named:
            raise ConfigError(
                f"no business group is known, and entities.{self.name}.third_party.{named[0]} needs {{{{ group }}}}: "
                f"name one with --group, or say with entities.{self.name}.parts.{self.entity.owner}.groups where they "
                "are listed"
            )

    async def delete_made(self) -> None:
        """Deletes what it made since the last time, as far as its ids are known."""
        for (key, group), ids in self._made.items():
            for external_id in ids - {None}:
                await self._delete_quietly(key, group, external_id)
        self._tidied |= self._made.keys()
        self._made.clear()

    async def clean_up(self) -> list[str]:
        """Deletes all that it ever made and that is still shown; returns the keys of what stays.

        Raises CallFailed where it cannot be looked for.
        """
        await self.delete_made()
        if self._tidied:
            await self.wait_for_search()
        for found in await self._list_remaining():
            if found.key and found.external_id:  # a path without them would be that of the whole collection
                await self._delete_quietly(found.key, found.group, found.external_id)
        return sorted({found.key or "" for found in await self._list_remaining()})

    async def _list_remaining(self) -> list[Found]:
        """What is still shown of it, each with the group it is shown in."""
        left: list[Found] = []
        for group in {group for _, group in self._tidied}:
            with suppress(Skipped):
                left += [
                    replace(found, group=group)
                    for found in await self.list_records(group)
                    if (found.key, group) in self._tidied
                ]
        for key, group in self._tidied if self.group is None and self.capabilities.can_lookup else ():
            left += [replace(found, group=group) for found in await self.third_party.lookup(key, group)]
        return left

    async def _delete_quietly(self, key: str, group: str | None, external_id: str | None) -> None:
        with suppress(CallFailed):
            await self.third_party.delete(Item(key, group, {}, external_id))


async def catch_refusal(write: Awaitable[T]) -> tuple[T | None, CallFailed | None]:
    """What a write brought, or how it was refused for good. Raises CallFailed for every other failure."""
    try:
        return await write, None
    except CallFailed as failure:
        if failure.kind is not Failure.PERMANENT:
            raise
        return None, failure


def fields_of(found: Found | None) -> Json | None:
    """Its fields, for people."""
    return None if found is None else found.fields
