"""Looks again at records that are neither linked nor made on the other side yet, once that may have changed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.merge_linked import merge_linked
from sync_orchestrator.core.two_way.rules import TwoWay

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_BATCH = 500


def wake_waiting_records(connection: Connection, two_way: TwoWay) -> None:
    """Has the records looked at again that waited for a first full sync of the other side."""
    for side in (two_way.ours, two_way.theirs):
        run(connection, queries.WAKE_WAITS, entity=side.entity)


def link_waiting_records(engine: Engine, two_way: TwoWay) -> int:
    """Links or makes records whose time has come to be looked at again; returns how many were looked at."""
    looked_at = 0
    for side in (two_way.ours, two_way.theirs):
        keys = _BATCH
        while keys == _BATCH:
            keys = in_transaction(engine, partial(_link_due, two_way=two_way, entity=side.entity))
            looked_at += keys
    return looked_at


def _link_due(connection: Connection, two_way: TwoWay, entity: str) -> int:
    if not run(connection, queries.LIST_DUE_WAITS, entity=entity, most=1):
        return 0
    acquire_lock(connection, AdvisoryLock.TWO_WAY, two_way.ours.entity)
    keys = [row.key for row in run(connection, queries.LIST_DUE_WAITS, entity=entity, most=_BATCH)]
    merge_linked(connection, two_way, entity, keys)
    notify_work(connection)
    return len(keys)
