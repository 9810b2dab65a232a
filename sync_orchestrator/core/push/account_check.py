"""Notices that another account is behind a third party: ids are those of the account that gave them."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.systems.suspension import is_known_account
from sync_orchestrator.errors import CallFailed

_log = logging.getLogger("sync_orchestrator.accounts")

CHECK_INTERVAL_SECONDS = 300.0
"""How long an answer counts in a drain that goes on."""

RECHECK_SECONDS = 30.0
"""How long it counts for another piece of work in the same process."""


async def read_account(context: Context, system: str) -> str | None:
    """The identity of the account behind a third party; None where it cannot be asked for. Raises CallFailed."""
    for entity in context.of_system(system):
        account = await entity.third_party.account()
        if account is not None:
            return account
    return None


async def is_same_account(context: Context, system: str, *, at_most_every: float = CHECK_INTERVAL_SECONDS) -> bool:
    """Whether pushes may go on: False when another account was noticed, which suspends the third party.

    The account is asked for at most every so many seconds. A third party that does not answer changes nothing.
    """
    now = time.monotonic()
    if now - context.accounts_asked.get(system, float("-inf")) < at_most_every:
        return True
    context.accounts_asked[system] = now
    try:
        account = await read_account(context, system)
    except CallFailed as failure:
        _log.warning("%s: the account could not be asked for: %s.", system, failure)
        return True
    if account is None:
        return True
    return await asyncio.to_thread(
        in_transaction, context.engine, partial(is_known_account, system=system, account=account)
    )
