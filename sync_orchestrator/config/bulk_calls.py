"""A call that writes many records at once, and how its results are matched to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sync_orchestrator.config.calls import OutcomeRule, WriteCallSettings
from sync_orchestrator.config.types import Body, Expression, Model, Seconds

ITEM_NAMES = ("op", "key", "id", "group", "payload", "digest", "idempotency_key")


class BulkCallSettings(Model):
    """Many records in one call, instead of one call each.

    Names in ``request``: ``items``, a list of ``{op, key, id, group, payload, digest, idempotency_key}`` (of a delete
    ``{op, key, id, group}``), and ``group`` where ``by_group``. ``op`` is ``create``, ``update`` or ``delete``: those
    set up alike go in one call. Without a body of its own, a list of the payloads (of a delete, of the ids) is sent.
    """

    request: WriteCallSettings
    """The call."""
    item: Body = None
    """How one item stands in ``items``, and in the list that is sent without a body, where not as above. Names: those
    of an item, null where it has no such, and the references, null in a delete where they need the payload:
    ``{method: PUT, path: "/items/{{ id | urlencode }}", body: "{{ payload }}"}``
    for a call of sub-requests."""
    size: int = Field(default=100, ge=2, le=10_000)
    """The most records in one call."""
    bytes: int | None = Field(default=None, ge=1)
    """The largest body; more is sent in several calls."""
    gather: Seconds = 0.02
    """How long a call waits for more records to go with it."""
    by_group: bool = False
    """A call holds records of one business group."""
    results: Expression | None = None
    """Where the results stand in the answer, one an item; without it the call's outcome is that of all."""
    match: Literal["position", "id", "key"] = "position"
    """By what a result belongs to an item; by ``id`` or ``key`` those without a result count as not written."""
    result_key: Expression = "@"
    """Where in a result the id or key stands that it is matched by."""
    result_id: Expression | None = None
    """Where in a result the third party's id stands."""
    outcomes: list[OutcomeRule] = []
    """What a result means: over ``{status, body}``, ``body`` being the result, ``status`` its own."""
    status: Expression | None = None
    """Where in a result its own status stands."""
    atomic: bool = False
    """One bad item fails the whole call, which then wrote nothing: it is halved to find the bad one."""
