"""Two-way sync of an entity: which fields people change on both sides, how records are matched, what deletes mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sync_orchestrator.config.sources import SharedSourceSettings, Source
from sync_orchestrator.config.types import Expression, Model, Name, Seconds
from sync_orchestrator.expressions.mapping_columns import AGREED, paths_of

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import EntitySettings
    from sync_orchestrator.config.targets import TargetSettings, ThirdPartySettings

FieldPolicy = Literal["ours", "theirs", "newest", "ask"]
DeletePolicy = Literal["follow", "ask", "ignore", "restore"]


class SharedFieldSettings(Model):
    """A field that has one value on both sides. Mappings read the merged value as ``agreed.NAME``."""

    ours: Expression
    """Where our side has it: JMESPath over the parts of this entity, such as ``shop.note``. Both expressions have to
    give the same value where the sides agree, so convert units and formats here."""
    theirs: Expression
    """Where their side has it: JMESPath over the parts of the entity ``back``, such as ``erp.remark``."""
    policy: FieldPolicy
    """``ours`` or ``theirs``: one side owns the field, and what the other one changes is put back. ``newest``: the
    newer change wins a conflict, by the times of both sides. ``ask``: a person decides each conflict."""


class MatchSettings(Model):
    """A natural key, by which records that were made on each side by itself are found to be the same."""

    ours: Expression
    """Where our side has it: JMESPath over the parts of this entity."""
    theirs: Expression
    """Where their side has it: JMESPath over the parts of the entity ``back``."""


class DeletePolicies(Model):
    """What follows when a linked record is deleted on one side: by default ``follow`` for ours, ``ask`` for theirs.

    ``follow``: it is deleted on the other side, too, unless it was changed there meanwhile; then a person decides.
    ``ask``: a person decides. ``ignore``: the other one stays, and they are no longer linked. ``restore``: it is made
    again from the other one.
    """

    ours: DeletePolicy = "follow"
    """What follows a deletion on our side."""
    theirs: DeletePolicy = "ask"
    """What follows a deletion on their side."""


class TwoWaySettings(Model):
    """This entity and another one that carries the changes of the third party back. Ask for it field by field."""

    back: Name
    """The entity that reads the same records from the third party and writes them to our side."""
    keys: Literal["same", "ids"] = "same"
    """``same``: linked records have the same key in both entities, such as an article number. ``ids``: the key of each
    is the id by which the other side's API knows it, and they are linked by ``match``."""
    match: dict[Name, MatchSettings] = {}
    """Natural keys, tried in this order before anything is made. With ``keys: ids`` at least one."""
    fields: dict[Name, SharedFieldSettings] = {}
    """The fields that both sides have. All others belong to the side whose mapping reads them."""
    first: Literal["ours", "theirs", "ask"] = "ask"
    """Who wins where records that were just linked differ in a field that neither side owns."""
    deletes: DeletePolicies = DeletePolicies()
    skew: Seconds = Field(default=2, le=3600)
    """With ``newest``, changes that lie closer together are decided by a person: clocks differ."""
    read_lag: Seconds | None = None
    """For how long after a write a read may show the state before it; by default ``search_lag`` of the third party."""


def find_two_way_problems(
    entities: Mapping[str, EntitySettings],
    sources: Mapping[str, Source],
    third_parties: Mapping[str, ThirdPartySettings],
) -> Iterator[str]:
    """Yields what is wrong with two-way entities, a sentence each."""
    backs: dict[str, str] = {}
    for name, entity in entities.items():
        settings = entity.two_way
        if settings is None:
            continue
        place = f"entities.{name}.two_way"
        back = entities.get(settings.back)
        if back is None or settings.back == name:
            others = ", ".join(other for other in entities if other != name) or "none"
            yield f"{place}.back: names no other entity: '{settings.back}'; there are: {others}"
            continue
        if back.two_way is not None:
            yield f"{place}.back: {settings.back} has a two_way of its own. Say it in one of the two entities"
            continue
        if (first := backs.setdefault(settings.back, name)) != name:
            yield f"{place}.back: {settings.back} carries the changes of {first} back already"
            continue
        yield from _find_system_problems(place, name, entity, back, sources, third_parties)
        yield from _find_key_problems(place, entity, back)
        yield from _find_field_problems(place, name, entity, back)
        for of, each in ((name, entity), (settings.back, back)):
            yield from _find_write_problems(of, each, third_parties)
    for name, entity in entities.items():
        if entity.two_way is None and name not in backs and (read := _list_agreed_reads(entity)):
            field, shared = next(iter(read.items()))
            yield (
                f"entities.{name}.mapping.{field}: reads {AGREED}.{shared}, and the entity has no two_way, nor is "
                "it the 'back' of one"
            )


def _find_system_problems(
    place: str,
    name: str,
    entity: EntitySettings,
    back: EntitySettings,
    sources: Mapping[str, Source],
    third_parties: Mapping[str, ThirdPartySettings],
) -> Iterator[str]:
    assert entity.two_way is not None
    system, source = entity.third_party.system, sources.get(back.owner)
    read_from = source.same_as if isinstance(source, SharedSourceSettings) else back.owner
    if read_from != system:
        yield (
            f"{place}.back: {entity.two_way.back} reads {back.owner}, and {name} writes to {system}. Their 'owner' has "
            f"to be the source that is {system}: 'sources.{system}: {{same_as: {system}}}'"
        )
    for of, each in ((name, entity), (entity.two_way.back, back)):
        owner = each.parts.get(each.owner)
        if owner is None:
            continue
        if owner.read is None and owner.sql is None and not owner.settings:
            yield (
                f"entities.{of}.parts.{each.owner}.read: is needed by {place}: a notification of a two-way record is a "
                "reason to read it"
            )
        if AGREED in each.parts:
            yield f"entities.{of}.parts.{AGREED}: with two_way, mappings know the merged values by that name"


def _find_key_problems(place: str, entity: EntitySettings, back: EntitySettings) -> Iterator[str]:
    assert entity.two_way is not None
    settings = entity.two_way
    targets = ((entity, "the third party"), (back, "our side"))
    if settings.keys == "ids":
        if not settings.match:
            yield (
                f"{place}.match: is needed with keys 'ids': without a natural key, a record that was made on both "
                "sides would be there twice"
            )
        for each, where in targets:
            target = each.third_party
            if target.creates == "allowed" and target.ids == "theirs" and target.find_same is None:
                yield (
                    f"{place}.match: needs 'find_same' at {where}: a record that somebody makes there is found by its "
                    "natural key before another one is made"
                )
            if target.ids == "ours":
                yield f"{place}.keys: 'ids' needs 'ids: theirs' at {where}; with 'ids: ours' say keys: same"
        return
    for each, where in targets:
        target = each.third_party
        if target.ids == "theirs" and target.lookup is None:
            yield f"{place}.keys: 'same' needs 'lookup' at {where}: it finds the record by its key before one is made"
        elif target.ids == "theirs" and target.creates == "allowed" and not target.search_first:
            yield f"{place}.keys: 'same' needs 'search_first: true' at {where}, since others make records there"


def _find_field_problems(place: str, name: str, entity: EntitySettings, back: EntitySettings) -> Iterator[str]:
    assert entity.two_way is not None
    settings = entity.two_way
    read = {name: _list_agreed_reads(entity), settings.back: _list_agreed_reads(back)}
    for of, fields in read.items():
        for field, shared in fields.items():
            if shared not in settings.fields:
                known = ", ".join(settings.fields) or "none"
                yield f"entities.{of}.mapping.{field}: {AGREED}.{shared} is none of {place}.fields: {known}"
    for shared, of_field in settings.fields.items():
        where = f"{place}.fields.{shared}"
        for side, each, expression in (("ours", entity, of_field.ours), ("theirs", back, of_field.theirs)):
            if {path[0] for path in paths_of(expression)} - {each.owner, "key"}:
                yield f"{where}.{side}: reads other parts than '{each.owner}', which is the one that two_way can write"
        for of in (name, settings.back):
            if shared not in read[of].values():
                yield (
                    f"{where}: no field of entities.{of}.mapping reads {AGREED}.{shared}, so its value would never go "
                    "there. A field that only one side writes needs no two_way"
                )
        if of_field.policy == "newest":
            for of, each in ((name, entity), (settings.back, back)):
                owner = each.parts.get(each.owner)
                if owner is not None and owner.version.kind != "time":
                    yield (
                        f"{where}.policy: 'newest' compares times, and the versions of entities.{of}.parts."
                        f"{each.owner} are none. Choose ours, theirs or ask"
                    )


def _find_write_problems(
    name: str, entity: EntitySettings, third_parties: Mapping[str, ThirdPartySettings]
) -> Iterator[str]:
    """A shared field is only written where nobody's change can be overwritten unseen."""
    if not _list_agreed_reads(entity):
        return
    target = entity.third_party
    system = third_parties.get(target.system)
    place = f"entities.{name}.third_party"
    if system is not None and system.adapter is not None:
        yield (
            f"{place}: shared fields of two_way need a third party that is described by calls, not by a class: a class "
            "does not say whether it would overwrite a change of somebody else's"
        )
    elif target.bulk_update is not None:
        yield (
            f"{place}.bulk_update: shared fields of two_way are looked at before each write, so they cannot go with "
            "others in one call. Leave it out, and say 'update'"
        )
    elif not (has_revision(target) or is_partial(target)):
        yield (
            f"{place}.update: would write whole records over what somebody changed meanwhile. Say 'revision' and send "
            "it with the update, or let the update change single fields (PATCH, or update_sends: changes), or give "
            "each field of two_way to one side"
        )


def is_partial(target: TargetSettings) -> bool:
    """Whether an update changes only the fields that it sends."""
    if target.update_sends is not None:
        return target.update_sends == "changes"
    return target.update is not None and target.update.method == "PATCH" and target.update.body is None


def has_revision(target: TargetSettings) -> bool:
    """Whether an update is refused where the record has changed since it was read."""
    return (
        target.revision is not None
        and target.update is not None
        and "revision" in target.update.collect_template_names()
    )


def _list_agreed_reads(entity: EntitySettings) -> dict[str, str]:
    """The mapped fields that read a shared field, each with its name."""
    return {
        field: path[1]
        for field, expression in entity.mapping.items()
        for path in paths_of(expression)
        if path[0] == AGREED and len(path) > 1
    }


def list_shared_fields(entity: EntitySettings) -> frozenset[str]:
    """The mapped fields of an entity that hold merged values."""
    return frozenset(_list_agreed_reads(entity))
