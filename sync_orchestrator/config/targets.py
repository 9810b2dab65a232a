"""Third parties, and how an entity's records are kept there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from sync_orchestrator.config.bulk_calls import ITEM_NAMES, BulkCallSettings
from sync_orchestrator.config.call_checks import check_followers, check_names
from sync_orchestrator.config.calls import (
    CountCallSettings,
    DeleteCallSettings,
    FilterCheckSettings,
    IdHeaderSettings,
    ListCallSettings,
    OutcomeRule,
    ReadCallSettings,
    ReferenceSettings,
    RevisionSettings,
    WriteCallSettings,
    check_remake,
)
from sync_orchestrator.config.http_access import HttpSettings, check_address
from sync_orchestrator.config.types import Body, ClassName, Expression, Model, Name, Pattern, Seconds, Template
from sync_orchestrator.expressions.templates import names_in, place_of
from sync_orchestrator.expressions.times import check_readable_format, zone_of

Outcomes = list[OutcomeRule]

_OF_A_CLASS = {"system", "key_field", "settings"}


class BreakerSettings(Model):
    """When a third party counts as down, and how often it is tried again meanwhile."""

    failures: int = Field(default=10, ge=2)
    """So many distinct records failed with no success in between. It also counts as down when calls for two or more
    records have had no response for twice ``timeout``, with no success in between."""
    probe_after: Seconds = 5
    """How long after that a record is tried again; twice as long after each one that fails."""
    probe_cap: Seconds = 60
    """The longest wait between two of these."""


class ThirdPartySettings(HttpSettings):
    """The external service that is kept in sync."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["base_url"]}, {"required": ["adapter"]}]})

    base_url: str = Field(default="", pattern=r"^https?://", validate_default=False)
    """The address that all paths stand below; with ``adapter`` only where the class calls an API over HTTP."""
    adapter: ClassName | None = None
    """``module:Class`` of your own, a subclass of ``adapters.base.ThirdPartyAdapter``, for what cannot be told here. It
    is given up where a method, or a page, takes twice ``timeout``."""
    settings: dict[str, object] = Field(default={}, repr=False)
    """What that class is given."""
    rate: float | None = Field(default=None, gt=0)
    """Calls a second over all runs on all machines; None for no limit. Where calls are refused with 429 all the same,
    fewer are made for a while. Of a class without ``base_url``, its methods and pages count."""
    in_flight_window: Seconds | None = None
    """How long after we gave up a call may still take effect there; ``timeout`` unless told."""
    search_lag: Seconds = 1
    """How long after a create a search finds the record."""
    breaker: BreakerSettings = BreakerSettings()
    """When it counts as down."""
    account: ReadCallSettings | None = None
    """Asks which account our login belongs to, such as ``{path: /me, record: id}``. Ids belong to the account that gave
    them: when another one responds, pushes stop until an operator runs ``adopt``. It is asked before the first push of
    each drain. A class with ``adapter`` implements the method ``account`` instead."""

    @model_validator(mode="after")
    def _check_reachability(self) -> ThirdPartySettings:
        if self.account is not None and self.adapter is not None:
            raise ValueError("'account' is for third parties without a class: implement its method 'account' instead")
        check_names({"account": self.account}, {"account": set()})
        if self.adapter is None and not self.base_url:
            raise ValueError("'base_url' is needed, or 'adapter'")
        if self.adapter is None and self.settings:
            raise ValueError("'settings' are for a class: name it with 'adapter', or leave them out")
        check_address(self)
        return self

    @property
    def in_flight_seconds(self) -> float:
        """How long after a call without a response the call may still take effect, in seconds."""
        return self.timeout if self.in_flight_window is None else self.in_flight_window


class RoundNormalization(Model):
    """Numbers are rounded, halves away from zero."""

    round: int = Field(ge=0, le=12)
    """How many digits are kept behind the point."""


class CutNormalization(Model):
    """Texts are cut off."""

    cut: int = Field(ge=1)
    """How many characters are kept."""


class FunctionNormalization(Model):
    """A function is applied."""

    apply: Expression
    """An expression over the value, such as ``upper(trim(@))``."""


Normalization = (
    Literal[
        "trim",
        "collapse_spaces",
        "lower",
        "upper",
        "nfc",
        "html_unescape",
        "unescape_html",
        "line_breaks",
        "time",
        "empty_as_null",
        "null_as_empty",
        "sort_list",
        "unique",
    ]
    | RoundNormalization
    | CutNormalization
    | FunctionNormalization
)


class CodecSettings(Model):
    """How a mapped field is written and read where that is not plain."""

    kind: Literal["plain", "text", "number", "decimal_text", "minor_units", "bool_number", "time"] = "plain"
    """``decimal_text``: 9.9 is written "9.90"; ``minor_units``: as 990; ``bool_number``: true as 1; ``text``: a number
    or truth value as text; ``number``: a text of digits as number; ``time``: a time in ISO 8601 in the form of
    ``format`` and ``zone``, compared as a moment, as exactly as that form is."""
    digits: int = Field(default=2, ge=0, le=12)
    """Of ``decimal_text`` and ``minor_units``."""
    format: str = "iso"
    """Of ``time``: ``iso``, ``iso_seconds``, ``iso_ms``, ``iso_us``, ``date``, ``epoch`` (seconds since 1970),
    ``epoch_ms``, ``json_date`` (``/Date(0)/``), or a pattern such as ``%d.%m.%Y %H:%M``. A time in ISO 8601 is
    understood besides."""
    zone: str = "UTC"
    """Of ``time``: the zone that times are written in, and that those without an offset are in, on both sides:
    ``Europe/Berlin``, ``+02:00``."""
    write: Body = None
    """The shape it is written in, around ``{{ value }}``: ``{__class__: Decimal, value: "{{ value }}"}``,
    ``{de: "{{ value }}"}``."""
    read: Expression | None = None
    """Where it stands in their record; under its own name, in the shape it is written in, by default. Functions are
    allowed, such as ``split(tags, ',')``."""
    normalize: list[Normalization] = []
    """What the third party is known to do to the value. It is done to both sides, in this order, before they are
    compared, so that the value does not count as different. ``trim``, ``collapse_spaces``, ``lower``, ``upper``,
    ``nfc``, ``html_unescape`` (also ``unescape_html``) and ``line_breaks`` are for texts, also those in lists and
    objects. ``time`` compares times in ISO 8601 as moments. ``empty_as_null`` makes "", [] and {} null, and
    ``null_as_empty`` makes null "". ``sort_list`` ignores the order of a list, ``unique`` repeated items.
    ``{round: 2}`` rounds numbers, ``{cut: 255}`` cuts texts off, and ``{apply: "round_half_even(@, `2`)"}`` applies an
    expression. A value that a step does not fit stays as it is. What is sent does not change."""

    @model_validator(mode="after")
    def _is_a_time(self) -> CodecSettings:
        if self.kind == "time":
            check_readable_format(self.format)
            zone_of(self.zone)
        elif unused := sorted(self.model_fields_set & {"format", "zone"}):
            raise ValueError(f"'{unused[0]}' is for kind: time")
        return self

    @model_validator(mode="after")
    def _can_be_read(self) -> CodecSettings:
        named = "value" in names_in(self.write)
        if named and self.read is None and place_of(self.write, "value") is None:
            raise ValueError("say with 'read' where it stands: 'write' has no '{{ value }}' by itself")
        return self


class IdempotencySettings(Model):
    """A key with which a repeated create is carried out once."""

    header: str | None = "Idempotency-Key"
    """The header that it is sent in; null where a template of ``create`` uses ``{{ idempotency_key }}`` itself."""
    value: Template = "{{ idempotency_key }}"
    """Names: ``idempotency_key`` (ours: the same for all attempts at one creation, another for the next one), ``key``,
    ``group``, ``digest``, ``payload``. A value made of the content changes with it; then a create of unknown outcome is
    not repeated, but looked up. ``{{ idempotency_key | uuid }}`` where a UUID is asked for."""


class TargetSettings(Model):
    """Where and how an entity's records are kept at the third party."""

    system: Name
    """The third party, by its name under ``third_parties``."""
    settings: dict[str, object] = Field(default={}, repr=False)
    """What the class of a third party is given for this entity, beside the system's own. All but ``key_field`` stands
    in the class then."""

    ids: Literal["theirs", "ours"] = "theirs"
    """Who gives the ids: with ``ours`` the key is the id."""
    key_field: str
    """The mapped field that holds our key."""
    key_pattern: Pattern | None = None
    """The keys that can be written there; others are refused before any call."""
    id: Expression = "id"
    """Where the third party's id stands in one of its records."""
    id_from: IdHeaderSettings | None = None
    """Where a create's answer says it otherwise. If it does not say it at all, the record is looked up."""
    group: Expression | None = None
    """Where the business group stands in one of its records."""
    gone_when: Expression | None = None
    """True for a record that it still shows though it is deleted or deactivated. Such a one counts as not there; if it
    keeps its key taken, a create that is refused as a duplicate becomes an update of it, which has to revive it.
    ``count`` has to leave them out by itself."""
    fields: dict[str, CodecSettings] = {}
    """How mapped fields are written and read, where that is not plain."""
    record: Expression = "@"
    """Where the record stands in the answer to a create or an update."""

    upsert: Literal["update", "update_first", "create_first"] = "update"
    """With our ids: ``update`` alone makes what is missing; or ``update`` or ``create`` is tried first, and the other
    one when it says ``missing`` or ``duplicate``. An empty 204 that wrote nothing is told by a rule of
    ``update.outcomes``."""
    search_first: bool = False
    """With their ids: look for the key before every create, so that records which are there already are adopted."""
    look_first: Literal["auto", "always", "never"] = "auto"
    """With their ids: read a record before it is updated or deleted under the id that it was given. If another key is
    there, the id was given again: that record is left alone, and ours is searched by its key. ``auto``: unless the id
    is a random one (a UUID, an ObjectId, a ULID). ``never`` saves one ``read`` for each such write; choose it only if
    an id is never given again, not even after a restore from a backup."""
    creates: Literal["allowed", "never"] = "allowed"
    """``never``: others make the records there, and only those that are there are updated. ``create`` and
    ``bulk_create`` are left out then. A record that is not there waits until it is, and spends no attempts; an operator
    is told of it after ``alerts.waiting_after``."""
    deletes: Literal["allowed", "never"] = "allowed"
    """``never``: no record is removed there. ``delete`` and ``bulk_delete`` are left out then. A deletion ends as *not
    sent*, and what stays there counts as unmanaged."""
    create: WriteCallSettings | None = None
    """Makes a record."""
    update: WriteCallSettings | None = None
    """Overwrites a record; with our ids and ``upsert: update`` it makes one, too."""
    update_sends: Literal["record", "changes"] | None = None
    """What an update of a record with shared fields (``two_way``) sends. ``changes``: only what is changed,
    since the API leaves other fields alone. By default so for PATCH with no body of its own."""
    delete: DeleteCallSettings | None = None
    """Removes a record."""
    bulk_create: BulkCallSettings | None = None
    """Makes many records in one call."""
    bulk_update: BulkCallSettings | None = None
    """Overwrites many records in one call."""
    bulk_delete: BulkCallSettings | None = None
    """Removes many records in one call."""
    read: ReadCallSettings | None = None
    """One record by its id. Names: ``key``, ``id``, ``group``, the references."""
    also: dict[Name, ReadCallSettings] = {}
    """More calls that a record is read by; what each finds is put into the record under its name, null where there is
    nothing. They are made for each record of a listing, too. Names: as of ``read``."""
    lookup: ListCallSettings | None = None
    """Every record with a key. Names: ``key``, ``group``."""
    find_same: ListCallSettings | None = None
    """With ``two_way``: every record that may be the same as one that is about to be made, by a natural key, such as
    ``params: {sku: "{{ payload.sku }}"}``. What it finds is linked, or told of, and none is made. Names: ``payload``,
    ``key``, ``group``."""
    list: ListCallSettings | None = None
    """Everything in a business group. Names: ``group``."""
    list_shows: Literal["records", "ids"] = "records"
    """``ids``: the listing lacks fields, so each record is read by its id. An item needs the place of the id, or that
    of ``key_field`` where ids are ours; of plain ids, ``items: "ids[].{id: @}"`` makes such."""
    count: CountCallSettings | None = None
    """How many records a business group has; without it they are listed."""
    filter_check: FilterCheckSettings = FilterCheckSettings()
    """How it is proven that filters are obeyed."""

    revision: RevisionSettings | None = None
    """What is to be sent with a write, so that nobody else's is overwritten unseen."""
    references: dict[Name, ReferenceSettings] = {}
    """What calls refer to, looked up before them; each is a name in their templates."""
    idempotency: IdempotencySettings | None = None
    """A key by which a repeated create is known, where the third party gives the ids."""
    outcomes: Outcomes = []
    """Looked at after those of a call and before those of the system."""

    @model_validator(mode="after")
    def _check_completeness(self) -> TargetSettings:
        if self.create and self.create.then and not (self.update and self.update.then):
            raise ValueError(
                "'create.then' needs 'update.then': where such a call fails after its create, the next "
                "attempt is an update"
            )
        self._check_never()
        self._check_ids()
        self._check_names()
        self._check_revision()
        self._check_bulks()
        check_remake("outcomes", self.outcomes)
        check_remake("create.outcomes", self.create.outcomes if self.create else ())
        return self

    def check_kind(self, system: ThirdPartySettings) -> None:
        """Whether it says what a third party of this kind needs. Raises ValueError."""
        if system.adapter is None:
            self._check_needed()
            if self.settings:
                raise ValueError("'settings' are for the class of a third party: leave them out")
        elif too_much := sorted(self.model_fields_set - _OF_A_CLASS):
            raise ValueError(f"{too_much[0]}: the class {system.adapter} sees to that: leave it out")

    def _check_needed(self) -> None:
        for name in ("read", "list"):
            if getattr(self, name) is None:
                raise ValueError(f"'{name}' is needed")
        for name in ("update", *(["delete"] if self.deletes == "allowed" else [])):
            if getattr(self, name) is None and getattr(self, f"bulk_{name}") is None:
                hint = ", or 'deletes: never' if no record is ever removed there" if name == "delete" else ""
                raise ValueError(f"'{name}' or 'bulk_{name}' is needed{hint}")
        if self.creates == "allowed" and self.create is None and self.bulk_create is None:
            if self.ids == "theirs":
                raise ValueError(
                    "'create' is needed where the third party gives the ids, or 'creates: never' if others make the "
                    "records there"
                )
            if self.upsert != "update":
                raise ValueError(f"upsert '{self.upsert}' needs 'create'")

    def _check_never(self) -> None:
        """What belongs to creates and deletes is refused where these are never made."""
        for setting, names in (
            ("creates", ("create", "bulk_create", "id_from", "search_first", "idempotency")),
            ("deletes", ("delete", "bulk_delete")),
        ):
            if getattr(self, setting) == "allowed":
                continue
            for name in names:
                if getattr(self, name) not in (None, False):
                    raise ValueError(f"{name}: has no effect with '{setting}: never': leave it out")
            hint = f"'{setting}: never' does not allow"
            for place, rules in self._rules_of_updates():
                if any(rule.means == "remake" for rule in rules):
                    raise ValueError(f"{place}: 'remake' deletes a record and makes it anew, which {hint}")
        if self.creates == "never" and self.upsert != "update":
            raise ValueError(f"upsert: '{self.upsert}' makes records, which 'creates: never' does not allow")
        if self.creates == "never" and self.ids == "theirs" and self.lookup is None:
            raise ValueError("creates: 'never' needs 'lookup' where the third party gives the ids: it finds the record")

    def _rules_of_updates(self) -> Iterator[tuple[str, Outcomes]]:
        """The outcomes of calls that may mean ``remake``, each with its place."""
        if self.update is not None:
            yield "update.outcomes", self.update.outcomes
            for number, call in enumerate(self.update.then):
                yield f"update.then[{number}].outcomes", call.outcomes
        if self.bulk_update is not None:
            yield "bulk_update.request.outcomes", self.bulk_update.request.outcomes
            yield "bulk_update.outcomes", self.bulk_update.outcomes

    def collect_bulk_calls(self) -> dict[str, BulkCallSettings]:
        """The calls of many records, by the name of their field."""
        names = ("bulk_create", "bulk_update", "bulk_delete")
        return {name: bulk for name in names if (bulk := getattr(self, name)) is not None}

    def _check_bulks(self) -> None:
        for name, bulk in self.collect_bulk_calls().items():
            if bulk.request.then:
                raise ValueError(
                    f"{name}.request.then: a call of many records has no linked calls: put them under "
                    f"'{name[5:]}.then', where they are made for each record"
                )
            if name != "bulk_update":
                check_remake(f"{name}.request.outcomes", bulk.request.outcomes)
                check_remake(f"{name}.outcomes", bulk.outcomes)
            if "group" in bulk.request.collect_template_names() and not bulk.by_group:
                raise ValueError(
                    f"{name}: {{{{ group }}}} in its request needs by_group: true; otherwise a call holds "
                    "records of several groups"
                )
            if self.revision is not None and name != "bulk_create":
                raise ValueError(f"{name}: with 'revision' a record takes a call of its own, by '{name[5:]}'")
        create = self.bulk_create
        if create is not None and self.ids == "theirs":
            if create.match == "id":
                raise ValueError("bulk_create: what is made has no id yet: match by position or key")
            if create.result_id is None and self.lookup is None:
                raise ValueError("bulk_create needs 'result_id', or 'lookup' to find what was made")

    def _check_ids(self) -> None:
        """What belongs to one kind of ids is refused with the other."""
        if self.ids == "theirs":
            if self.upsert != "update":
                raise ValueError(
                    f"upsert '{self.upsert}' is for our ids; with theirs a record is updated under the id "
                    "that is known, and made where there is none: leave it out"
                )
            by_id = [call for call in (self.read, *self.also.values()) if call is not None]
            if self.list_shows == "ids" and any("key" in call.collect_template_names() for call in by_id):
                raise ValueError(
                    "list_shows 'ids': what is listed shows no key, so 'read' and 'also' cannot use "
                    "{{ key }}; use {{ id }}"
                )
        else:
            for name in ("id_from", "search_first", "idempotency", "look_first"):
                if getattr(self, name) not in (None, False, "auto"):
                    raise ValueError(
                        f"'{name}' is for third parties that give the ids: leave it out, or say ids: theirs"
                    )
        if self.search_first and self.lookup is None:
            raise ValueError("search_first needs 'lookup'")

    def _check_revision(self) -> None:
        refused = self.delete.refused if self.delete is not None else None
        calls = [call for call in (self.update, self.delete, refused) if call is not None]
        if self.revision is not None and not any("revision" in call.collect_template_names() for call in calls):
            raise ValueError("'revision' is sent by no call: put {{ revision }} into 'update' or 'delete'")

    def _check_names(self) -> None:
        place, known = self._with_references("group"), self._with_references("key", "group")
        record = known | {"id"}
        removed = record | ({"revision"} if self.revision else set())
        written = removed | self._with_references("key", "group", "payload") | {"digest"}
        made = written - {"id", "revision"} | ({"idempotency_key"} if self.idempotency else set())
        followed = written - {"revision"}
        check_names(
            {
                "create": self.create,
                "update": self.update,
                "delete": self.delete,
                "read": self.read,
                "lookup": self.lookup,
                "find_same": self.find_same,
                "list": self.list,
                "count": self.count,
            },
            {
                "create": made,
                "update": written,
                "delete": removed,
                "read": record,
                "lookup": known,
                "find_same": self._with_references("key", "group", "payload"),
                "list": place,
                "count": place,
            },
        )
        check_followers("create", self.create, followed)
        check_followers("update", self.update, followed)
        if self.delete is not None:
            check_names({"delete.refused": self.delete.refused}, {"delete.refused": removed})
        bulks = {name: bulk.request for name, bulk in self.collect_bulk_calls().items()}
        check_names(bulks, dict.fromkeys(bulks, place | {"items"}))
        for name, bulk in self.collect_bulk_calls().items():
            in_items = [*ITEM_NAMES, *sorted(self._with_references("key", "group", "payload") - {*ITEM_NAMES})]
            if unknown := names_in(bulk.item) - set(in_items):
                raise ValueError(
                    f"{name}.item: nothing fills in '{sorted(unknown)[0]}'; known here: {', '.join(in_items)}"
                )
        for name, call in self.also.items():
            check_names({f"also.{name}": call}, {f"also.{name}": record})
        for name, reference in self.references.items():
            check_names({f"references.{name}": reference}, {f"references.{name}": {"key", "group", "payload"}})
        for name, codec in self.fields.items():
            if unknown := names_in(codec.write) - {"value"}:
                raise ValueError(f"fields.{name}.write: only 'value' is known here, not '{sorted(unknown)[0]}'")
        if self.idempotency is not None:
            self._check_idempotency(self.idempotency)

    def _check_idempotency(self, idempotency: IdempotencySettings) -> None:
        names = names_in(idempotency.value)
        if unknown := names - {"idempotency_key", "key", "group", "digest", "payload"}:
            raise ValueError(f"idempotency.value: nothing fills in '{sorted(unknown)[0]}'")
        if "idempotency_key" not in names:
            raise ValueError(
                "idempotency.value needs {{ idempotency_key }}: without it, a record that is made again "
                "after it was deleted is answered for the first one"
            )
        if idempotency.header is None and self.create and "idempotency_key" not in self.create.collect_template_names():
            raise ValueError("idempotency.header is null: put {{ idempotency_key }} into 'create'")

    def uses_group(self, names: set[str]) -> bool:
        """Whether templates with these names depend on the business group, by themselves or by a reference."""
        used = [self.references[name] for name in names & self.references.keys()]
        return "group" in names or any("group" in reference.collect_template_names() for reference in used)

    def _with_references(self, *known: str) -> set[str]:
        """These names and those of the references that need no others."""
        return {
            *known,
            *(name for name, reference in self.references.items() if reference.collect_template_names() <= set(known)),
        }
