"""Listings page by page, and single answers, as the listings and reads in ``sync.yaml`` describe them.

A listing that goes in a circle, repeats itself or ends early is a failure and never an end: what it lacks would count
as deleted.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urljoin

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.link_header import next_link
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.config import CountCallSettings, ListCallSettings, OutcomeRule, ReadCallSettings, RequestSettings
from sync_orchestrator.errors import CallFailed
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.templates import names_in

MAX_EMPTY_PAGES = 1000
"""So many pages in a row without an item are taken for a listing that never ends."""

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DIGITS = re.compile(r"[0-9]{1,18}")

KeyOf = Callable[[object], str]


async def list_pages(
    http: HttpClient,
    listing: ListCallSettings,
    values: Values,
    *,
    key_of: KeyOf | None = None,
    after: str | None = None,
    outcomes: Sequence[OutcomeRule] = (),
) -> AsyncIterator[tuple[list[Any], str | None]]:
    """The items of each page, with the last key where paging goes by key (None otherwise).

    ``key_of`` is needed for paging ``after``. What a page repeats of the page before, because rows were added, is left
    out, and so is the first item of a page where ``includes_after`` says so. Raises CallFailed.
    """
    walk = _Walk(http, listing, key_of, after)
    while not walk.over:
        try:
            answer = await walk.request_page(values, outcomes)
        except CallFailed as failure:
            if not walk.begun or failure.status not in listing.end_status or failure.is_page:
                raise
            walk.end_listing()
            return
        items = walk.accept_page(answer)
        if items:
            yield items, str(walk.last_key) if listing.paging == "after" else None


async def first_page(
    http: HttpClient, listing: ListCallSettings, values: Values, outcomes: Sequence[OutcomeRule] = ()
) -> list[object]:
    """The items of the first page alone. Raises CallFailed."""
    walk = _Walk(http, listing, None, None)
    return walk.items_in(await walk.request_page(values, outcomes))


async def get_record(
    http: HttpClient,
    call: ReadCallSettings,
    values: Values,
    outcomes: Sequence[OutcomeRule] = (),
    *,
    key_of: KeyOf | None = None,
) -> Any:
    """What one reading call finds; None only where the answer says in so many words that there is nothing.

    An answer of another shape (a maintenance page in JSON) is a failure: it must not pass for a missing record. Raises
    CallFailed.
    """
    return record_in(http, call, await http.read(call, values, outcomes), key_of)


def record_in(http: HttpClient, call: ReadCallSettings, answer: Answer, key_of: KeyOf | None = None) -> object:
    """The record in an answer, or None where it says that there is none: by null, an empty list or a 204.

    Of a list it is the first item; others may be there only under the same key, or if they are equal where ``key_of``
    is not told. Raises CallFailed.
    """
    found = _find_record(http, call, answer)
    if not isinstance(found, list):
        return found
    same = key_of or repr
    if len(found) > 1 and len({same(item) for item in found}) > 1:
        raise http.build_unusable_failure(
            f"{len(found)} records where {_describe_call(call)} should give one", answer.text
        )
    return found[0] if found else None


async def get_all(http: HttpClient, call: ReadCallSettings, values: Values, *, key_of: KeyOf) -> list[object]:
    """All that one reading call finds of one record: mostly one item, none where the answer says so.

    Several items have one key. Raises CallFailed.
    """
    answer = await http.read(call, values)
    found = record_in(http, call, answer, key_of)  # which refuses several keys
    if found is None:
        return []
    every = _find_record(http, call, answer)
    return every if isinstance(every, list) else [found]


async def get_list(
    http: HttpClient, call: ReadCallSettings, values: Values, outcomes: Sequence[OutcomeRule] = ()
) -> list[object]:
    """The list that one reading call finds, which is no page of a listing. Raises CallFailed."""
    answer = await http.read(call, values, outcomes, about="collection")
    found = _find_record(http, call, answer)
    if not isinstance(found, list):
        raise http.build_unusable_failure(
            f"no list at '{call.record}' in the answer to {_describe_call(call)}", answer.text, about_system=True
        )
    return found


async def get_count(
    http: HttpClient, call: CountCallSettings, values: Values, outcomes: Sequence[OutcomeRule] = ()
) -> int:
    """The whole number that a counting call finds. Raises CallFailed."""
    answer = await http.read(call, values, outcomes)
    if call.header is not None:
        came = answer.headers.get(call.header.lower(), "")
        number = _parse_digits(came.partition("/")[2] if "/" in came else came)
        if number is None:
            raise http.build_unusable_failure(
                f"no number in the header '{call.header}' of the answer to {_describe_call(call)}",
                came or "nothing",
                about_system=True,
            )
        return number
    found = http.search_document(compile_selector(call.number), answer.body)
    number = _read_whole_number(found)
    if number is None and answer.headers.get("content-type", "").lower().startswith("text/plain"):
        number = _parse_digits(answer.text.strip().strip('"'))
    if number is None:
        raise http.build_unusable_failure(
            f"no number at '{call.number}' in the answer to {_describe_call(call)}"
            f"{_hint_of_digits(call.number, found)}",
            answer.text,
            about_system=True,
        )
    return number


class _Walk:
    """Where a listing stands; ``over`` when its last page has come, ``begun`` when its first has."""

    def __init__(self, http: HttpClient, listing: ListCallSettings, key_of: KeyOf | None, after: str | None) -> None:
        self._http = http
        self._listing = listing
        self._key_of = key_of
        starts: dict[str, object] = {"after": after or "", "page": listing.first_page, "offset": 0}
        self._position: Any = starts.get(listing.paging)
        self._positions = {_encode_position(self._position)}
        self._before: set[object] = set()
        self._pages: set[int] = set()
        self._number = 0
        self._empty = 0
        self._came = 0
        self._listed = 0
        self._requested: object = None
        self._new = 0
        self._least: int | None = None
        self.last_key: str | None = None
        self.begun = after is not None
        self.over = False

    async def request_page(self, values: Values, outcomes: Sequence[OutcomeRule]) -> Answer:
        """The next page as it comes."""
        self._number += 1
        self._requested = self._position
        known = {**values, "limit": self._listing.size, self._listing.paging: self._position}
        if self._listing.paging in ("link", "next_url") and self._position is not None:
            return await self._http.follow_address(self._position, self._listing, known, outcomes)
        return await self._http.read(self._listing, known, outcomes)

    def items_in(self, answer: Answer) -> list[object]:
        """The items of a page."""
        if answer.status == 204:
            return []
        if answer.body is None:
            raise self._build_failure("the answer is not JSON", answer.text)
        items = self._http.search_document(compile_selector(self._listing.items), answer.body)
        if not isinstance(items, list):
            raise self._build_failure(f"no list at '{self._listing.items}'", answer.text)
        return items

    def accept_page(self, answer: Answer) -> list[object]:
        """The items of a page that the page before did not have; moves on to the next one."""
        items = self._without_start(self.items_in(answer))
        self.begun = True
        self._came += len(items)
        if self._listing.paging == "after" and items:
            assert self._key_of is not None
            self.last_key = self._key_of(items[-1])
        following = self._find_next_position(answer, items)
        if following is not None:
            if _encode_position(following) in self._positions:
                raise self._build_failure(f"{self._start_hint(items)}the listing does not move on from", str(following))
            self._positions.add(_encode_position(following))
            self._position = following
        new = self._new_of(items)
        self._new += len(new)
        if following is None:
            self.end_listing()
        return new

    def _without_start(self, items: list[object]) -> list[object]:
        """The items behind the key that the page was requested after, with which some servers begin the page."""
        self._listed = len(items)
        if not self._listing.includes_after or not items or not self._position:
            return items
        assert self._key_of is not None
        return items[1:] if self._key_of(items[0]) == self._position else items

    def _start_hint(self, items: list[object]) -> str:
        """What to set where the server seems to begin a page with the key that it was requested after."""
        if self._listing.paging != "after" or not items or self._key_of is None:
            return ""
        if self._listing.includes_after or self._key_of(items[0]) != self._requested:
            return ""
        return (
            "the page begins with the key that it was requested after; set 'includes_after: true', or let the "
            "server skip that item (such as 'skip: 1' after the first page): "
        )

    def end_listing(self) -> None:
        """The listing says that it is at its end."""
        self.over = True
        if self._least is not None and self._new < self._least:
            raise self._build_failure(
                f"the listing ends after {self._new} items, of which it says that they are", str(self._least)
            )

    def _new_of(self, items: list[object]) -> list[object]:
        self._empty = 0 if items else self._empty + 1
        if self._empty >= MAX_EMPTY_PAGES:
            raise self._build_failure("the listing does not end", f"{self._empty} pages without an item")
        if not items:
            return []
        marks = [_identify_item(item) for item in items]
        page = hash(tuple(marks))
        if page in self._pages:
            raise self._build_failure("the listing gives the same page again", str(items))
        new = [item for item, mark in zip(items, marks, strict=True) if mark not in self._before]
        if self._listing.paging == "after" and len(new) < len(items):
            raise self._build_failure(
                f"{self._start_hint(items)}the page overlaps the one before, which ended before it, at", str(items)
            )
        self._pages.add(page)
        self._before = set(marks)
        return new

    def _find_next_position(self, answer: Answer, items: list[object]) -> object:
        """The position of the next page; None where there is none."""
        ends = self._is_all(answer) or not items or self._is_short()
        match self._listing.paging:
            case "after":
                return None if ends else self.last_key
            case "page":
                return None if ends else self._position + 1
            case "offset":
                return None if ends else self._position + len(items)
            case "cursor":
                return self._read_cursor(answer)
            case "link":
                return self._resolve_next_address(answer, next_link(answer.headers.get("link", "")))
            case "next_url":
                return self._resolve_next_address(answer, self._read_next_field(answer))
        if (link := next_link(answer.headers.get("link", ""))) is not None:
            raise self._build_failure("there is a next page, and 'paging' is none", link)
        return None

    def _is_short(self) -> bool:
        return self._listing.short_page_ends and self._listed < self._listing.size

    def _is_all(self, answer: Answer) -> bool:
        """Whether as many have come as there are; a number that changes meanwhile is taken at its least."""
        if self._listing.total is None or answer.status == 204:
            return False
        found = self._http.search_document(compile_selector(self._listing.total), answer.body)
        total = _read_whole_number(found)
        if total is None:
            raise self._build_failure(
                f"no number at '{self._listing.total}'{_hint_of_digits(self._listing.total, found)}", answer.text
            )
        self._least = total if self._least is None else min(self._least, total)
        return self._came >= total

    def _read_next_field(self, answer: Answer) -> object:
        """What stands where the next page is named."""
        if self._listing.next_header is not None:
            return answer.headers.get(self._listing.next_header.lower(), "").strip()
        assert self._listing.next is not None
        return self._http.search_document(compile_selector(self._listing.next), answer.body)

    def _read_cursor(self, answer: Answer) -> object:
        cursor = self._read_next_field(answer)
        fits = isinstance(cursor, str | int | float | Decimal) or "cursor" in names_in(self._listing.body)
        if cursor is None or cursor in ("", [], {}):
            return None
        if isinstance(cursor, bool) or not fits:
            raise self._build_failure(f"no cursor at '{self._listing.next}'", answer.text)
        return cursor

    def _resolve_next_address(self, answer: Answer, told: object) -> str | None:
        if told in (None, ""):
            return None
        try:
            if isinstance(told, str):
                return urljoin(answer.url, told)
        except ValueError:
            pass
        raise self._build_failure("no address of the next page", str(told))

    def _build_failure(self, what: str, came: str) -> CallFailed:
        return self._http.build_unusable_failure(
            f"page {self._number} of {_describe_call(self._listing)}: {what}", came, about_system=True
        )


def _describe_call(call: RequestSettings) -> str:
    return f"{call.method} {call.path}"


def _encode_position(position: object) -> str:
    return exact_json.dump_text(position, sort_keys=True)


def _identify_item(item: Any) -> Any:
    """What an item is known by again."""
    try:
        content = tuple(item.items())
        hash(content)
    except (AttributeError, TypeError):
        return repr(item)
    return content


def _read_whole_number(found: object) -> int | None:
    """A number of things, or None for what is none."""
    if isinstance(found, bool) or not isinstance(found, int | float | Decimal) or found < 0 or found != int(found):
        return None
    return int(found)


def _hint_of_digits(expression: str, found: object) -> str:
    """Says how what is at an expression becomes a number; empty if it is no text of digits."""
    if isinstance(found, str) and _parse_digits(found) is not None:
        return f", but a text of digits (write to_number({expression}))"
    return ""


def _parse_digits(text: str) -> int | None:
    return int(text) if _DIGITS.fullmatch(text.strip()) else None


def _find_record(http: HttpClient, call: ReadCallSettings, answer: Answer) -> object:
    """What stands at the place of the record; None only where the answer says that there is nothing."""
    if answer.status == 204:
        return None
    if answer.body is None and answer.text.strip() != "null":
        raise http.build_unusable_failure(
            f"the answer to {_describe_call(call)} is not JSON", answer.text, about_system=True
        )
    found = http.search_document(compile_selector(call.record), answer.body)
    if found is None and not _says_nothing(answer.body, call.record):
        raise http.build_unusable_failure(
            f"nothing at '{call.record}' in the answer to {_describe_call(call)}", answer.text
        )
    return found


def _says_nothing(document: object, place: str) -> bool:
    """Whether the answer is ``null``, or has ``null`` at a plain place such as ``data.item``."""
    if document is None:
        return True
    if not _PLAIN.fullmatch(place):
        return False
    *above, last = place.split(".")
    for name in above:
        document = document.get(name) if isinstance(document, dict) else None
    return isinstance(document, dict) and last in document
