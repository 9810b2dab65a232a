"""What is relied on of a third party, behaviour by behaviour; each makes its own records and needs no other.

Not here: the records and their clean-up (``bench.py``), how behaviours are run (``run.py``).
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sync_orchestrator.adapters.rest.filter_check import is_refusal
from sync_orchestrator.config import Config, FilterCheck, ThirdPartySystem
from sync_orchestrator.config.environment import FromEnvironment
from sync_orchestrator.config.http_access import Basic, Bearer, Login
from sync_orchestrator.conformance.field_forms import judge_field
from sync_orchestrator.conformance.fixture import Bench, fields_of, refusal
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.values.identity import may_be_given_again
from sync_orchestrator.errors import CallFailed, Failure

MANY = 7
SMALL_PAGE = 3
_LARGEST_MADE_FOR_PAGES = 50
_SECRET = re.compile(r"secret|token|passw|api[-_]?key|authorization|x-.*key", re.IGNORECASE)

THIRD_PARTY: Behaviours[Bench] = Behaviours()
behaviour = THIRD_PARTY.add


@behaviour("create")
async def create_then_read(bench: Bench) -> None:
    """What was created can be read back, all of its fields as they were written."""
    await bench.shows(await bench.create(bench.item()))


@behaviour("update")
async def update_then_read(bench: Bench) -> None:
    """An update overwrites what is there."""
    item = await bench.create(bench.item())
    if (all_changed := await _with_all_changed(bench, item)) is not None:
        item = all_changed
    else:
        await _updated(bench, bench.changed(item, 1))


async def _with_all_changed(bench: Bench, item: Item) -> Item | None:
    """Changes every mapped field that it can, at once, or one by one where some cannot be changed like that.

    Returns the record as it is then; None where no field can be changed. Raises Differs.
    """
    changes = bench.samples.changes(item.payload)
    whole = replace(item, payload={**item.payload, **changes})
    if changes and await _is_taken(bench, whole):
        await bench.shows(whole)
        return whole
    changed = item
    for name, value in changes.items() if len(changes) > 1 else ():
        one = replace(changed, payload={**changed.payload, name: value})
        if await _is_taken(bench, one):
            await bench.shows(one)
            changed = one
    return None if changed is item else changed


async def _is_taken(bench: Bench, item: Item) -> bool:
    """Whether an update is not refused for good: a value that was made here need not be valid there.

    Nor is it taken where it names a record that does not exist, such as a category.
    """
    try:
        told, refused = await refusal(bench.update(item))
    except CallFailed as failure:
        if failure.kind is not Failure.REFERENCE:
            raise
        return False
    if refused is None and told is None:
        raise Differs("an update says that the record is not there", f"the id {item.external_id}")
    return refused is None


@behaviour("update", needs=("update-then-read",))
async def back_to_older_values(bench: Bench) -> None:
    """The last write wins, also one that brings back what was there before."""
    first = await bench.create(bench.item())
    await _updated(bench, bench.changed(first, 1))
    await _updated(bench, first)


@behaviour("id", "update")
async def id_is_kept(bench: Bench) -> None:
    """A record keeps its id through updates, and the listing shows it under that id."""
    item = await bench.create(bench.item())
    told = await bench.update(bench.changed(item, 1))
    if told != item.external_id:
        raise Differs(f"the update says that the id is {told}", f"{item.external_id}, as the create said")
    if bench.group is None:
        return
    ids = await bench.eventually(lambda: _ids(bench, item), bool)
    if ids != [item.external_id]:
        raise Differs(f"the listing shows it under {_named(ids)}", f"{item.external_id}, as the create said")


@behaviour("delete")
async def delete_then_gone(bench: Bench) -> None:
    """What was deleted cannot be read, found or listed any more."""
    item = await bench.create(bench.item())
    await bench.shows(item)
    await bench.third_party.delete(item)
    found = await bench.eventually(lambda: bench.third_party.read(item), lambda found: found is None)
    if found is not None:
        raise Differs(f"it can still be read: {found.fields}", "no record")
    left = (
        []
        if bench.group is None and not bench.capabilities.can_lookup
        else await bench.eventually(lambda: bench.of_key(item), lambda left: not left)
    )
    if left:
        raise Differs("it is still shown", "no record", bench.look("list", "pages"))


@behaviour("delete")
async def delete_of_missing_is_fine(bench: Bench) -> None:
    """Deleting what is gone already is no failure."""
    item = await bench.create(bench.item())
    await bench.third_party.delete(item)
    await bench.third_party.delete(item)


@behaviour("read", needs=("delete-then-gone",))
async def missing_is_told(bench: Bench) -> None:
    """A record that is not there is told as missing: no failure, and no other record."""
    item = await bench.create(bench.item())
    await bench.third_party.delete(item)
    found = await bench.eventually(lambda: bench.third_party.read(item), lambda found: found is None)
    if found is not None:
        raise Differs(f"a read shows {found.fields}", "no record")
    if bench.capabilities.assigns_ids and await bench.update(item) is not None:
        raise Differs(
            "an update of a deleted record counts as a success",
            "a response that means missing",
            f"{bench.look('update', 'update')}: add a rule to its 'outcomes' that means missing, for the response that "
            'the service gives then (such as "status == `204`")',
        )


@behaviour("look_first", "capabilities", needs=("delete-then-gone",))
async def ids_that_are_given_again_are_noticed(bench: Bench) -> None:
    """Where the id of a deleted record is given to the next one, a read shows whose it is."""
    if not bench.capabilities.assigns_ids:  # then the id is the key
        return
    first = await bench.create(bench.item())
    await bench.third_party.delete(first)
    second = await bench.create(bench.item())
    if second.external_id != first.external_id:
        return
    again = f"the id {first.external_id} of a deleted record is given again"
    if bench.capabilities.look_first == "never":
        raise Differs(
            again,
            "an id that does not come back, or a look before each write",
            f"set look_first to auto: {bench.look('look_first', 'capabilities')}",
        )
    if bench.capabilities.look_first == "auto" and not may_be_given_again(first.external_id or ""):
        raise Differs(
            again,
            "a random id that does not come back",
            f"set look_first to always: {bench.look('look_first', 'capabilities')}",
        )
    found = await bench.eventually(lambda: bench.third_party.read(first), bool)
    if found is None or found.key != second.key:
        raise Differs(
            f"{again}, and a read of it shows the key {None if found is None else found.key!r}",
            f"the key {second.key!r}",
            bench.look("read", "read"),
        )


@behaviour("lookup")
async def lookup_finds_by_key(bench: Bench) -> None:
    """A search by our key finds the record once the search lag is over, and no other one."""
    if not bench.capabilities.can_lookup:
        raise Skipped("it says that it cannot be searched by key")
    item, other = await bench.create(bench.item()), await bench.create(bench.item())
    found = await bench.eventually(lambda: bench.third_party.lookup(item.key, item.group), bool)
    if [each.external_id for each in found] != [item.external_id]:
        raise Differs(
            f"it finds {_named([each.external_id for each in found])}",
            f"{item.external_id} alone, and not {other.external_id}",
        )
    if found:
        bench.hold_same(item, found[0], "the fields that were written")
    nobody = bench.item("nobody")
    if found := await bench.third_party.lookup(nobody.key, nobody.group):
        raise Differs(f"of a key that nobody has it finds {_named([each.external_id for each in found])}", "nothing")


@behaviour("create")
async def repeated_create_makes_no_duplicate(bench: Bench) -> None:
    """The same create, sent again, leaves one record."""
    item = bench.item()
    if bench.capabilities.assigns_ids and not bench.capabilities.idempotent_create:
        raise Skipped("it says nothing of repeated creates: they are never sent, but looked up")
    first, second = await bench.create(item), await bench.create(item)
    if first.external_id != second.external_id:
        raise Differs(f"the second one made {second.external_id} beside {first.external_id}", "the first one's id")
    await _no_duplicate(bench, item)


@behaviour("create", needs=("repeated-create-makes-no-duplicate",))
async def lost_answer_leads_to_no_duplicate(bench: Bench) -> None:
    """A create whose answer is lost is found again, or repeated without harm."""
    item = bench.item()
    await bench.create(item)  # and nobody has heard of its id
    if not bench.capabilities.assigns_ids:
        if await bench.update(item) != item.key:
            raise Differs("a second write does not find it", f"the key {item.key}", bench.look("update", "update"))
    elif bench.capabilities.idempotent_create:
        again = await bench.create(item)
        if await bench.update(again) is None:
            raise Differs(f"nothing is under {again.external_id}, which the repeated create named", "the record")
    elif bench.capabilities.can_lookup:
        await bench.lag()
        found = await bench.third_party.lookup(item.key, item.group)
        if len(found) != 1:
            lag = f"third_parties.{bench.entity.third_party.system}.search_lag, which is {bench.system.search_lag:g} s"
            raise Differs(
                f"its search finds {len(found)} records after search_lag",
                "the one that was made",
                f"raise {lag}, or {bench.look('lookup', 'lookup')}",
            )
        if await bench.update(replace(item, external_id=found[0].external_id)) is None:
            raise Differs("what the search found cannot be updated", "the record", bench.look("lookup", "lookup"))
    else:
        raise Skipped("neither a search nor repeated creates: a person is asked then")
    await _no_duplicate(bench, item)


@behaviour("list", "pages")
async def list_is_complete(bench: Bench) -> None:
    """A listing of a business group shows every record of it, each once, as it was written."""
    items = await asyncio.gather(*(bench.create(bench.item()) for _ in range(MANY)))
    await _all_listed(bench, items, lambda: bench.listed())


@behaviour("list", "pages", needs=("list-is-complete",))
async def list_has_more_than_one_page(bench: Bench) -> None:
    """A listing goes on until its end, page by page."""
    listing = bench.entity.third_party.list
    small, count = bench.third_party, MANY
    if listing is not None and listing.paging == "none":
        raise Skipped("it is set up as one page that has it all")
    if listing is not None and "limit" in listing.names():
        small = bench.rebuilt(third_party={"list": listing.model_copy(update={"size": SMALL_PAGE})})
    elif listing is not None:
        if listing.size > _LARGEST_MADE_FOR_PAGES:
            raise Skipped(f"a page has {listing.size} records, and its size is not sent: put {{{{ limit }}}} into it")
        count = listing.size + 1
    bench.listed_group  # noqa: B018  # skips where none is known
    try:
        items = await asyncio.gather(*(bench.create(bench.item()) for _ in range(count)))
        await _all_listed(bench, items, lambda: bench.listed(third_party=small))
        if len(await bench.pages(third_party=small)) < 2:
            raise Skipped("all came in one page: have its class take a page size in its settings")
    finally:
        if small is not bench.third_party:
            await small.close()


@behaviour("list", "pages")
async def groups_are_kept_apart(bench: Bench) -> None:
    """A listing of a business group shows nothing of another one, and an unknown group has nothing."""
    group = bench.listed_group
    item = await bench.create(bench.item())
    check = bench.entity.third_party.filter_check
    nowhere = FilterCheck().group if bench.system.adapter is not None else check.group
    try:
        found, refused = await refusal(bench.listed(nowhere))
    except CallFailed as failure:
        if failure.kind is not Failure.REFERENCE and not is_refusal(failure):  # as ``check --live`` judges it
            raise
        found, refused = None, failure
    if refused is None and found:
        raise Differs(f"of a group that does not exist it shows {len(found)} records", "none")
    if bench.other_group is None:
        return
    await bench.eventually(lambda: _ids(bench, item), bool)
    if any(found.key == item.key for found in await bench.listed(bench.other_group)):
        raise Differs(f"the group {bench.other_group} shows {item.key}", f"it in {group} alone")


@behaviour("count", needs=("delete-then-gone", "list-is-complete"))
async def count_agrees_with_list(bench: Bench) -> None:
    """The count of a business group is the number of records that its listing shows."""
    group = bench.listed_group
    if await bench.third_party.count(group) is None:
        raise Skipped("it says that it cannot count")
    items = [await bench.create(bench.item()) for _ in range(2)]
    await bench.third_party.delete(items.pop())

    async def both() -> tuple[int | None, int]:
        return await bench.third_party.count(group), len(await bench.listed())

    await bench.lag()
    counted, listed = await bench.eventually(both, lambda both: both[0] == both[1])
    if counted != listed:
        raise Differs(f"it counts {counted}", f"{listed}, which it lists")


@behaviour("group", "update", needs=("update-then-read", "groups-are-kept-apart"))
async def group_can_change(bench: Bench) -> None:
    """A record that moves to another business group is shown there, and no longer in the old one."""
    old = bench.listed_group
    if bench.other_group is None:
        raise Skipped("only one business group is known: name another with --other-group")
    item = await bench.create(bench.item())
    moved = await bench.move(item, bench.other_group)

    async def groups() -> list[str]:
        return [
            group for group in (old, moved.group or "") for found in await bench.listed(group) if found.key == item.key
        ]

    shown = await bench.eventually(groups, lambda groups: groups == [moved.group])
    if shown != [moved.group]:
        raise Differs(f"it is shown in {_named(shown)}", f"{moved.group} alone", bench.look("list", "pages"))


@behaviour("create")
async def concurrent_writes_do_not_mix(bench: Bench) -> None:
    """Records written at the same time keep their own contents."""
    items = await asyncio.gather(
        *(
            bench.create(item)
            for item in [
                bench.item() if not bench.samples.changeable else bench.changed(bench.item(), number)
                for number in range(MANY)
            ]
        )
    )
    if len({item.external_id for item in items}) != len(items):
        raise Differs("two records have the same id", "one id each")
    for item in items:
        await bench.shows(item)


@behaviour("revision", "update", needs=("update-then-read",))
async def two_at_once_leave_one_whole(bench: Bench) -> None:
    """Of two writes of one record at the same time one wins as a whole, or is told of; a stale revision is no end."""
    item = await bench.create(bench.item())
    rivals = [bench.changed(item, 1), bench.changed(item, 2)]
    for ending in await asyncio.gather(*(bench.update(rival) for rival in rivals), return_exceptions=True):
        if isinstance(ending, CallFailed) and ending.kind is Failure.PERMANENT and not ending.may_be_conflict:
            raise Differs(f"one of them is refused for good: {ending.detail}", "success, or a failure that passes")
        if isinstance(ending, BaseException) and not isinstance(ending, CallFailed):
            raise ending
    found = await bench.third_party.read(item)
    if found is None or all(bench.differences(rival, found) for rival in rivals):
        nearer = [] if found is None else min((bench.differing_fields(rival, found) for rival in rivals), key=len)
        raise Differs(f"{fields_of(found)} is there", "what one of the two wrote", fields=nearer)
    await _updated(bench, item)


@behaviour("bulk_update", "update", needs=("update-then-read", "delete-then-gone"))
async def bulk_results_are_item_by_item(bench: Bench) -> None:
    """In a call of many records each has its own result: one that is gone spoils no other."""
    if not bench.entity.third_party.bulks():
        raise Skipped("it has no calls of many records")
    items = [bench.changed(item, 1) for item in await asyncio.gather(*(bench.create(bench.item()) for _ in range(3)))]
    gone = items.pop()
    await bench.third_party.delete(gone)
    results = await asyncio.gather(*(bench.update(item) for item in (*items, gone)), return_exceptions=True)
    for item, result in zip(items, results, strict=False):
        if result != item.external_id:
            raise Differs(f"a good one ended with {result}", f"its id {item.external_id}")
        await bench.shows(item)
    if bench.capabilities.assigns_ids and results[-1] is not None:
        raise Differs(f"the one that is gone ended with {results[-1]}", "None")
    await asyncio.gather(*(bench.third_party.delete(item) for item in (*items, gone)))


@behaviour("auth", "login")
async def wrong_login_is_told(bench: Bench) -> None:
    """A wrong login is told as such, so that everything waits until it is fixed."""
    wrong = _with_wrong_login(bench.system)
    if wrong is None:
        raise Skipped(
            "'auth' is a login call of its own, which is not tried with wrong credentials"
            if isinstance(bench.system.auth, Login)
            else "no login is set up that could be made wrong here"
        )
    stranger = bench.rebuilt(system=wrong)
    item = bench.item()
    try:
        await bench.listed(third_party=stranger)
        await bench.create(item, stranger)
    except CallFailed as failure:
        if failure.kind is not Failure.AUTH:
            raise Differs(
                f"a failure of the kind '{failure.kind}': {failure.detail}",
                f"one of the kind '{Failure.AUTH}'",
                _rule_for(bench, failure),
            ) from None
        return
    finally:
        await stranger.close()
    raise Differs("it lets anybody read and write", "a refusal")


def _values(kind: str, *values: Any) -> Callable[[Bench], Awaitable[None]]:
    async def run(bench: Bench) -> None:
        field = getattr(bench.samples, kind)
        if field is None:
            raise Skipped(
                f"the sample has no field for that ({kind})" + (": name one with --text" if kind == "text" else "")
            )
        for value in values:
            made, refused = await refusal(bench.create(bench.item(**{field: value})))
            if made is None:
                raise Skipped(f"it refuses {_clipped(value)} in '{field}': {refused}")
            found = await bench.eventually(
                lambda made=made: bench.third_party.read(made),  # type: ignore[misc]
                lambda found: found is not None,
            )
            came = None if found is None else found.fields.get(field)
            if found is None or not bench.is_kept(field, value, came):
                hint = judge_field(field, bench.entity.third_party.fields.get(field), value, came).hint
                raise Differs(
                    f"{field}: {_clipped(came)} came",
                    f"{_clipped(value)}, as it was written",
                    f"entities.{bench.name}.third_party: {hint}"
                    if hint and bench.system.adapter is None
                    else f"see {field} in 'mapping' and 'fields': write it as it is kept there",
                    fields=[field],
                    cause=f"{field} {value!r}",
                )

    return run


def _key(end: str) -> Callable[[Bench], Awaitable[None]]:
    async def run(bench: Bench) -> None:
        pattern = bench.entity.third_party.key_pattern
        if not bench.odd_keys:
            raise Skipped("some servers break on such keys: allow them with --odd-keys")
        fresh = bench.item(end)
        if pattern is not None and re.fullmatch(pattern, fresh.key) is None:
            raise Skipped(f"key_pattern '{pattern}' lets no such key through")
        item, refused = await refusal(bench.create(fresh))
        if refused is not None and refused.not_ours is not None:
            raise Differs(f"its key is {refused.not_ours!r}", "the key that was written")
        if item is None:
            raise Skipped(
                f"it refuses such a key: {refused}; "
                + ("say which it takes with key_pattern" if pattern is None else f"key_pattern '{pattern}' takes it")
            )
        await bench.shows(item)
        await _no_duplicate(bench, item)
        if bench.samples.changeable:
            await _updated(bench, bench.changed(item, 1))
        await bench.third_party.delete(item)
        left = await bench.eventually(lambda: bench.third_party.read(item), lambda left: left is None)
        if left is not None:
            raise Differs(
                f"after its delete it is still there: {left.fields}", "no record", bench.look("delete", "delete")
            )

    return run


def _family(
    prefix: str, section: str, method: str, made: dict[str, tuple[str, Callable[[Bench], Awaitable[None]]]]
) -> None:
    for name, (says, run) in made.items():
        run.__name__, run.__doc__ = f"{prefix}_{name}", says
        needs = ("update-then-read", "delete-then-gone") if prefix == "key_with" else ()
        behaviour(section, method, needs)(run)


_family(
    "values",
    "fields",
    "create and read",
    {
        "unicode": (
            "Texts of all scripts come back as they were written.",
            _values("text", "Ünïcödé 漢字 عربى 🙂", "a\u0301 is not á"),
        ),
        "markup": (
            "Quotes, markup and line breaks come back as they were written.",
            _values("text", "\"double\" 'single' <b>&amp;</b> \\ back; {{ name }}", "one\ntwo\tthree"),
        ),
        "outer_spaces": ("Spaces around a text are kept.", _values("text", "  spaces around  ")),
        "empty_text": ("An empty text stays one, and becomes no null.", _values("text", "")),
        "null": ("Null stays null.", _values("text", None)),
        "long_text": ("A long text is not cut off.", _values("text", "long text " * 400 + "end")),
        "decimals": ("Decimals come back to the last digit.", _values("decimal", 19.99, 0.1, 1234567.89)),
        "large_integers": ("Large whole numbers come back to the last digit.", _values("number", 2**31, 2**53 - 1)),
        "truth": ("True and false come back as such.", _values("truth", True, False)),
    },
)
_family(
    "key_with",
    "update",
    "create and read",
    {
        name: (f"A record whose key has {what} in it is kept like any other.", _key(end))
        for name, what, end in (
            ("slash", "a slash", "a/b"),
            ("space", "a space", "a b"),
            ("quotes", "quotes", "a'b\"c"),
            ("percent", "a percent sign", "a%2Fb%"),
            ("plus", "a plus sign", "a+b"),
            ("question_mark", "a question mark, a hash or an ampersand", "a?b#c&d=e"),
            ("unicode", "letters of all scripts", "ä漢🙂"),
        )
    },
)


async def _updated(bench: Bench, item: Item) -> None:
    told = await bench.update(item)
    if told is None:
        raise Differs("an update says that the record is not there", f"the id {item.external_id}")
    await bench.shows(item)


async def _no_duplicate(bench: Bench, item: Item) -> None:
    if bench.group is None and not bench.capabilities.can_lookup:
        return
    await bench.lag()
    found = await bench.of_key(item)
    if len(found) != 1:
        raise Differs(f"{len(found)} records have the key {item.key}", "one record")


async def _all_listed(bench: Bench, items: list[Item], look: Callable[[], Awaitable[list[Found]]]) -> None:
    keys = {item.key: item for item in items}

    async def ours() -> list[Found]:
        return [found for found in await look() if found.key in keys]

    shown = await bench.eventually(ours, lambda shown: len(shown) == len(keys))
    times = Counter(found.key for found in shown)
    if missing := keys.keys() - times.keys():
        raise Differs(f"{len(missing)} of {len(keys)} records are not shown, such as {min(missing)}", "all of them")
    if twice := [key for key, number in times.items() if number > 1]:
        raise Differs(f"{twice[0]} is shown {times[twice[0]]} times", "once")
    for found in shown:
        item = keys[found.key or ""]
        if found.external_id != item.external_id:
            raise Differs(f"{item.key} is shown with the id {found.external_id}", f"{item.external_id}")
        bench.hold_same(item, found, "the fields as a read shows them")


async def _ids(bench: Bench, item: Item) -> list[str]:
    return [found.external_id for found in await bench.listed() if found.key == item.key]


def _rule_for(bench: Bench, failure: CallFailed) -> str:
    """The rule that would tell a wrong login from other refusals."""
    place = f"third_parties.{bench.entity.third_party.system}.outcomes"
    if bench.system.adapter is not None:
        return f"see {bench.system.adapter}: raise CallFailed of the kind AUTH"
    rule = f'{{when: "status == `{failure.status}`", means: auth}}'
    return f"{'add to' if bench.system.outcomes else 'set'} {place}: {rule}, with a condition that fits this response"


def _with_wrong_login(system: ThirdPartySystem) -> dict[str, Any] | None:
    """The settings of the system that would have to change; None where nothing of a login is known."""
    headers = {name: _wrong(name, value) for name, value in system.headers.items()}
    settings = {name: _wrong(name, value) for name, value in system.settings.items()}
    changes: dict[str, Any] = {}
    match system.auth:
        case Basic():
            changes["auth"] = system.auth.model_copy(update={"password": "wrong"})
        case Bearer():
            changes["auth"] = system.auth.model_copy(update={"token": "wrong"})
    if headers != system.headers:
        changes["headers"] = headers
    if settings != system.settings:
        changes["settings"] = settings
    return changes or None


def _wrong(name: str, value: Any) -> Any:
    secret = isinstance(value, FromEnvironment) or (isinstance(value, str) and _SECRET.search(name))
    return "wrong" if secret else value


def with_changes(
    config: Config, entity: str, *, third_party: dict[str, Any] | None = None, system: dict[str, Any] | None = None
) -> Config:
    """The same configuration with some of an entity's third party changed."""
    settings = config.entities[entity]
    name = settings.third_party.system
    changed = settings.model_copy(update={"third_party": settings.third_party.model_copy(update=third_party or {})})
    return config.model_copy(
        update={
            "entities": {entity: changed},
            "third_parties": {name: config.third_parties[name].model_copy(update=system or {})},
        }
    )


def _named(ids: list[Any]) -> str:
    return ", ".join(map(str, ids)) or "nothing"


def _clipped(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"
