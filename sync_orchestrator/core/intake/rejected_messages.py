"""Messages of brokers that could not be read are kept with their reasons: they stop nothing, and nothing is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import in_transaction, run, to_jsonb
from sync_orchestrator.core.intake import queries
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.ledger.states import require_discard_reason
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.values.mapping import to_canonical_json
from sync_orchestrator.core.values.storable import find_storage_problem
from sync_orchestrator.errors import InvalidEvent, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

KEPT_DAYS = 30
"""So long after its end a message can still be looked at."""

_MAX_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that could not be read. ``headers`` hold JSON values."""

    consumer: str
    reason: str
    body: bytes
    content_type: str | None
    headers: Mapping[str, object]


def reason_of(error: InvalidEvent) -> str:
    """A refusal in one line: the field and what is wrong with it."""
    return f"{error.field}: {error}" if error.field else str(error)


def keep_rejected_messages(connection: Connection, found: Sequence[Rejected], most_bytes: int) -> None:
    """Keeps messages, each once however often it comes, their bodies up to ``most_bytes``; tells a person."""
    for each in found:
        headers = (
            dict(each.headers)
            if find_storage_problem(each.headers) is None
            else {"unreadable": ascii(dict(each.headers))}
        )
        content_type = None if each.content_type is None else _replace_unstorable(each.content_type)
        told = to_canonical_json([content_type, headers]).encode("utf-8", "surrogatepass")
        run(
            connection,
            queries.INSERT_REJECTED,
            consumer=each.consumer,
            reason=_replace_unstorable(each.reason)[:_MAX_REASON_LENGTH],
            digest=hashlib.blake2b(told + b"\0" + each.body, digest_size=16).digest(),
            content_type=content_type,
            headers=to_jsonb(headers),
            body=each.body[:most_bytes],
            size=len(each.body),
        )
    by_consumer: dict[str, list[str]] = {}
    for each in found:
        by_consumer.setdefault(each.consumer, []).append(_replace_unstorable(each.reason))
    for consumer, reasons in sorted(by_consumer.items()):
        alerts.lock_alert_decision(connection, "rejected", consumer)
        count = run(connection, queries.COUNT_OPEN_REJECTED_OF_CONSUMER, consumer=consumer)[0].n
        alerts.raise_alert(
            connection,
            "rejected",
            consumer,
            f"{consumer}: {count} messages cannot be read",
            examples=list(dict.fromkeys(reasons))[:3],
        )


def list_rejected_messages(connection: Connection, consumer: str | None, most: int) -> list[dict[str, object]]:
    """Those that are open, newest first."""
    return [dict(row._mapping) for row in run(connection, queries.LIST_REJECTED, consumer=consumer, most=most)]


def read_rejected_message(connection: Connection, number: int) -> dict[str, Any]:
    """All that is known of one. Raises NotFound."""
    rows = run(connection, queries.SELECT_REJECTED, id=number)
    if not rows:
        raise NotFound(f"there is no rejected message {number}")
    return {**rows[0]._mapping, "body": bytes(rows[0].body).decode("utf-8", "backslashreplace")}


def retry_rejected_messages(
    engine: Engine,
    understand: Callable[[Rejected], Sequence[ChangeEvent]],
    ids: Sequence[int] | None,
    consumer: str | None = None,
) -> tuple[int, int]:
    """Puts messages (None: all, or all of a consumer) through again; returns how many went and how many did not."""
    with engine.begin() as connection:
        rows = run(
            connection, queries.LIST_OPEN_REJECTED_IDS, ids=None if ids is None else list(ids), consumer=consumer
        )
    ends = [in_transaction(engine, partial(_retry_message, understand=understand, number=row.id)) for row in rows]
    return sum(ends), len(ends) - sum(ends)


def _retry_message(
    connection: Connection, understand: Callable[[Rejected], Sequence[ChangeEvent]], number: int
) -> bool:
    rows = run(connection, queries.CLAIM_REJECTED, id=number)
    if not rows:
        return True  # somebody else was quicker
    row = rows[0]
    try:
        if row.is_cut:
            raise InvalidEvent(f"only {len(row.body)} of its {row.size} bytes were kept: send it anew, then discard it")
        events = understand(Rejected(row.consumer, row.reason, bytes(row.body), row.content_type, row.headers))
    except InvalidEvent as error:
        run(
            connection,
            queries.NOTE_STILL_REJECTED,
            id=number,
            reason=_replace_unstorable(reason_of(error))[:_MAX_REASON_LENGTH],
        )
        return False
    record_in(connection, events)
    _end_messages(connection, [number], "retried", None)
    return True


def discard_rejected_messages(engine: Engine, ids: Sequence[int], reason: str) -> int:
    """Ends messages for good, with the reason kept; returns how many. Raises NotFound where none of them is open."""
    require_discard_reason(reason)
    count = in_transaction(engine, lambda connection: _end_messages(connection, ids, "discarded", reason))
    if not count:
        raise NotFound("none of these messages is open; `sync-orchestrator rejected list` shows which are")
    return count


def delete_old_messages(connection: Connection) -> None:
    """Deletes those that ended long ago."""
    run(connection, queries.DELETE_OLD_REJECTED, days=KEPT_DAYS)


def _end_messages(connection: Connection, ids: Sequence[int], ending: str, reason: str | None) -> int:
    rows = run(connection, queries.END_REJECTED, ids=list(ids), ending=ending, reason=reason)
    for consumer in sorted({row.consumer for row in rows}):
        alerts.lock_alert_decision(connection, "rejected", consumer)
        if not run(connection, queries.COUNT_OPEN_REJECTED_OF_CONSUMER, consumer=consumer)[0].n:
            alerts.resolve_alert(connection, "rejected", consumer)
    return len(rows)


def _replace_unstorable(value: str) -> str:
    """What the database can hold."""
    return value.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


def count_open_by_consumer(connection: Connection) -> dict[str, int]:
    """Returns how many messages wait for an operator, by consumer."""
    return {row.consumer: row.n for row in run(connection, queries.COUNT_OPEN_REJECTED)}
