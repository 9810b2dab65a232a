"""One call of an API: what is sent, how its answer is read, and what it means.

``names`` in the comments are what a template may use at that place. Which calls an entity needs is in ``targets.py``
and ``sources.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from sync_orchestrator.config.types import Body, Expression, Model, Name, Pattern, Seconds, Template
from sync_orchestrator.expressions.templates import names_in

_SINGLE = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

Means = Literal[
    "ok",
    "created",
    "missing",
    "duplicate",
    "conflict",
    "invalid",
    "auth",
    "throttled",
    "too_large",
    "reference_missing",
    "transient",
    "remake",
]

READING = ("GET", "HEAD")


class OutcomeRule(Model):
    """What an answer means where its status does not say it plainly; the first rule that fits decides."""

    when: Expression
    """True for the answers meant: a JMESPath over ``{status, body, text, headers}``, header names in lower case."""
    means: Means
    """``created``: as ``ok``. ``missing``: there is no such record (an empty 204 of an update that wrote nothing, too).
    ``duplicate``: a create found it there already. ``conflict``: its revision has moved on. ``invalid``: refused for
    good. ``too_large``: to be sent in halves. ``reference_missing``: something it refers to is not there yet; it waits
    and does not die. ``remake``: only a part of the record is there, and no update completes it, so it is deleted and
    made anew, under a new id where the third party gives the ids. Only for ``update``, ``bulk_update`` and the calls
    under ``then``."""
    message: Expression | None = None
    """Where in the same document the reason stands that people should read."""


class RequestSettings(Model):
    """One call. Templates stand in ``path`` (percent-encoded), ``params``, ``headers`` and ``body``."""

    method: Method = "GET"
    """The verb. It has to be configured for a call with a ``body``."""
    path: Template = Field(pattern=r"^(/|\{\{ '\w+' \| environment \}\})")
    """The address below the system's ``base_url``; what is filled in is percent-encoded, unless ``| tilde``,
    ``| odata`` or ``| raw`` says otherwise."""
    params: dict[str, Template] = {}
    """The query, added to that of ``path``; a blank is sent as ``%20``. What comes out empty is left out, except for a
    delete, which is refused then."""
    headers: dict[str, Template] = {}
    """Headers beside those of the system; what comes out empty is left out."""
    body: Body = None
    """Any structure; each text in it is a template, and one that is a single ``{{ name }}`` gives the value itself."""
    content: Literal["json", "form", "lines"] = "json"
    """How the body is sent: as JSON, as a form, or as one JSON document a line (the body is a list then)."""
    outcomes: list[OutcomeRule] = []
    """Looked at before those of the system."""

    @model_validator(mode="after")
    def _check_braces(self) -> Self:
        for text in (self.path, *self.params.values()):
            if single := _SINGLE.search(text):
                raise ValueError(f"write {{{{ {single[1]} }}}}, not {single[0]}")
        return self

    @model_validator(mode="after")
    def _means_what_it_can(self) -> Self:
        if not isinstance(self, WriteCallSettings | LinkedCallSettings):
            check_remake("outcomes", self.outcomes)
        return self

    @model_validator(mode="after")
    def _method_fits_body(self) -> Self:
        if self.body is not None and self.method in READING and "method" not in self.model_fields_set:
            raise ValueError(
                f"a call with a body is no {self.method} by default: add method: POST, or method: "
                f"{self.method} if the server reads the body of one"
            )
        return self

    def collect_template_names(self) -> set[str]:
        """The names that its templates ask for."""
        return names_in([self.path, self.params, self.headers, self.body])


class ChangingCallSettings(RequestSettings):
    """A call that changes something at the third party."""

    method: Method = "POST"
    """The verb. The default is for calls with a ``body``; without one it has to be configured."""

    @model_validator(mode="after")
    def _says_what_it_does(self) -> Self:
        if self.body is None and "method" not in self.model_fields_set:
            raise ValueError("add 'method': POST, PUT, PATCH or DELETE for a call that writes, GET for one that reads")
        if self.body is not None and self.method in READING:
            raise ValueError(
                f"a {self.method} writes nothing, and servers ignore its body: use method: POST, PUT or PATCH"
            )
        return self


class LinkedCallSettings(ChangingCallSettings):
    """A call that belongs to a write.

    Names: as of the write, and ``answer`` (the body of the response before), ``response`` (``{status, body}`` of it)
    and ``steps`` (by ``name``, the same of each call that was made; ``steps.write`` is the write itself).
    """

    name: Name | None = None
    """The name under which later calls find its response in ``steps``."""
    when: Expression | None = None
    """The call is made only where this is true: a JMESPath over ``{key, id, group, payload, answer, response, steps}``,
    such as ``length(answer.prices) == `0```. Lists and objects are true unless they are empty."""
    if_missing: ChangingCallSettings | None = None
    """The call that is made in its place where its response means ``missing``: it makes what this one would change."""

    @model_validator(mode="after")
    def _alternative_writes(self) -> Self:
        if self.if_missing is not None and self.if_missing.method in READING:
            raise ValueError(f"if_missing: a {self.if_missing.method} makes nothing: use method: POST or PUT")
        if self.name == "write":
            raise ValueError("name: 'write' is the write itself: use another name")
        return self

    def collect_template_names(self) -> set[str]:
        """The names that its templates ask for, and those of ``if_missing``."""
        return super().collect_template_names() | (
            self.if_missing.collect_template_names() if self.if_missing is not None else set()
        )

    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.method in READING and self.if_missing is None


class WriteCallSettings(RequestSettings):
    """A call that writes. Names: ``key``, ``id``, ``group``, ``payload``, ``digest``, ``revision``, the references.

    A create knows no ``id`` and no ``revision``, but ``idempotency_key``. Without ``body`` the payload itself is sent;
    ``{{ payload | plus(_rev=revision) }}`` sends it with one more field.
    """

    method: Method = "POST"
    """The verb."""
    record: Expression | None = None
    """Where the record stands in the answer; the target's ``record`` unless told."""
    then: list[LinkedCallSettings] = []
    """Calls that belong to it, in order, such as the stock level after the product; they know ``id`` and ``answer``
    besides, the body of the answer before. If one fails, the next attempt makes all of them again, by an update. What
    they write has to show in a mapped field, which ``also`` may read, or one that was never sent is not missed."""

    @model_validator(mode="after")
    def _check_method_writes(self) -> Self:
        if self.method not in READING:
            return self
        if self.body is not None:
            raise ValueError(
                f"a {self.method} writes nothing, and servers ignore its body: use method: POST, PUT or PATCH"
            )
        if all(call.is_read() for call in self.then):
            raise ValueError(
                f"a {self.method} writes nothing: use method: POST, PUT or PATCH, or a class (adapter) "
                "for an API that writes by GET"
            )
        return self


class DeleteCallSettings(RequestSettings):
    """A call that removes a record, or cancels it by any verb. Names: those of a write, without the payload."""

    method: Method = "DELETE"
    """The verb: that of an update, for a soft delete; that of another call, for a cancellation."""
    refused: ChangingCallSettings | None = None
    """What is called where it is refused for good: deactivate instead. ``gone_when`` then tells that it was."""

    @model_validator(mode="after")
    def _check_method_removes(self) -> Self:
        for place, call in (("", self), ("refused: ", self.refused)):
            if call is not None and call.method in READING:
                raise ValueError(
                    f"{place}a {call.method} removes nothing: use method: DELETE, POST, PUT or PATCH, or "
                    "a class (adapter) for an API that writes by GET"
                )
        return self


class ReadCallSettings(RequestSettings):
    """A reading call and where in the answer its result stands."""

    record: Expression = "@"
    """Where the record stands in the answer; a list is taken for its first item, an empty one for no record."""


class CountCallSettings(RequestSettings):
    """A counting call. Names: ``group``, the references."""

    number: Expression = "@"
    """Where the number stands in the body, which may be plain text; ``to_number(n)`` for one that is text in JSON."""
    header: str | None = None
    """Or the header it stands in, such as ``X-Total-Count``, or after the slash of a ``Content-Range``."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.method == "HEAD" and self.header is None:
            raise ValueError("the answer to a HEAD has no body: say 'header'")
        return self


class ListCallSettings(RequestSettings):
    """A listing, page by page.

    Names: those of its place, and by ``paging``: ``after`` (the last key of the page before), ``cursor`` (the value at
    ``next``, null at first), ``page``, ``offset``; ``limit`` is ``size``.
    """

    items: Expression = "@"
    """Where the list stands in the answer; it may be shaped there, such as ``rows[].{id: @}``."""
    total: Expression | None = None
    """Where the number of all items stands: at so many the listing ends, and one that ends earlier is a failure. Only
    with paging ``none``, ``page`` and ``offset``; not for a number that the server caps."""
    paging: Literal["none", "after", "cursor", "page", "offset", "link", "next_url"] = "none"
    """``link``: the Link header's ``rel="next"``. ``next_url``: an absolute or relative address at ``next``, or in the
    header ``next_header``. The body and the headers are sent again with each page. ``none``: one page has it all."""
    next: Expression | None = None
    """Where the next cursor or address stands in the body; null, absent or empty at the end. A cursor that is a list or
    an object can be sent in the body only."""
    next_header: str | None = None
    """The header in which it stands instead."""
    first_page: int = 1
    """The number of the first page, with paging ``page``."""
    size: int = Field(default=100, ge=1)
    """How many items are asked for. A server may give fewer: only an empty page, or no next one, is the end."""
    includes_after: bool = False
    """With paging ``after``: the server begins a page with the item of the key ``after``, as document databases with an
    inclusive start key do. That item is left out, and a page without any other is the end."""
    short_page_ends: bool = False
    """A page of fewer items than ``size`` is the last; only where the server never cuts pages of its own accord."""
    end_status: list[int] = []
    """A status that stands for the end, such as 400 or 404, after the first page."""

    @model_validator(mode="after")
    def _check_paging(self) -> Self:
        word = {"after": "after", "cursor": "cursor", "page": "page", "offset": "offset"}.get(self.paging)
        if word is not None and word not in self.collect_template_names():
            raise ValueError(f"paging '{self.paging}' needs {{{{ {word} }}}} in path, params, headers or body")
        if self.paging in ("cursor", "next_url"):
            if (self.next is None) == (self.next_header is None):
                raise ValueError(f"paging '{self.paging}' needs 'next' or 'next_header', one of them")
        elif self.next is not None or self.next_header is not None:
            raise ValueError("'next' and 'next_header' belong to paging 'cursor' and 'next_url'")
        if self.total is not None and self.paging not in ("none", "page", "offset"):
            raise ValueError("'total' belongs to paging 'none', 'page' and 'offset'")
        if self.includes_after and self.paging != "after":
            raise ValueError("'includes_after' belongs to paging 'after'")
        if self.includes_after and self.size < 2:
            raise ValueError("includes_after needs a 'size' of 2 or more: a page has one item of the page before")
        if self.short_page_ends and self.paging not in ("after", "page", "offset"):
            raise ValueError("'short_page_ends' belongs to paging 'after', 'page' and 'offset'")
        if (
            self.short_page_ends
            and "limit" not in self.collect_template_names()
            and "size" not in self.model_fields_set
        ):
            raise ValueError("short_page_ends needs {{ limit }} in the call, or the server's own page size as 'size'")
        return self

    def paging_names(self) -> set[str]:
        """The names that paging fills in."""
        return {"limit"} | ({self.paging} & {"after", "cursor", "page", "offset"})


class IdHeaderSettings(Model):
    """Where a create's answer names the id, when no record of it comes back."""

    header: str
    """The header that names it, such as ``Location``."""
    pattern: Pattern = r".*/([^/?#]+)"
    """Its first group is the id, percent-encoded."""

    @model_validator(mode="after")
    def _has_a_group(self) -> Self:
        if not re.compile(self.pattern).groups:
            raise ValueError("'pattern' needs a group in parentheses, which is the id")
        return self


class RevisionSettings(Model):
    """The third party's own version of a record, which it wants to see with a write.

    Calls of ``update``, ``delete`` and ``delete.refused`` that use ``{{ revision }}`` are preceded by ``read``; on a
    conflict (409, 412, 428 or a rule that says so) they are made once more with the new one. It is null for a record
    that has none, or that the update makes.
    """

    header: str | None = None
    """The header of a reading answer it stands in, such as ``ETag``."""
    path: Expression | None = None
    """Or where it stands in the record, such as ``_rev``."""

    @model_validator(mode="after")
    def _check_header_or_path(self) -> RevisionSettings:
        if (self.header is None) == (self.path is None):
            raise ValueError("say 'header' or 'path', one of them")
        return self


class ReferenceSettings(ReadCallSettings):
    """Something to be looked up before a call, such as the id of a store. Names: ``key``, ``group``, ``payload``.

    ``record`` is where the id stands. It is kept for ``keep``, by what its templates used; where it finds nothing the
    record waits for it.
    """

    keep: Seconds = 300
    """How long what it found is believed."""


class FilterCheckSettings(Model):
    """How it is checked that a server knows a filter.

    A filter that a server does not know is often ignored, and everything comes back. So before the result of a filter
    is trusted, a request for something impossible must return nothing. The check is repeated after an hour.
    """

    group: str = "sync-orchestrator-no-such-group"
    """A business group that cannot exist, of the form that the other side takes; also for the references."""
    key: str = "sync-orchestrator-no-such-key"
    """A key that cannot exist."""
    off: bool = False
    """Filters are believed without proof."""


def check_remake(place: str, outcomes: Sequence[OutcomeRule]) -> None:
    """Refuses ``means: remake`` where nothing could be made anew. Raises ValueError."""
    if any(outcome.means == "remake" for outcome in outcomes):
        raise ValueError(
            f"{place}: 'remake' is for the outcomes of 'update', 'bulk_update' and the calls under "
            "'then': move it there"
        )
