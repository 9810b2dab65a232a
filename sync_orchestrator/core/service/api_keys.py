"""Who may call the API service: keys with scopes, kept as hashes.

A key is ``sync_<id>_<secret>``. Its secret is 256 random bits, so that one round of SHA-256 is as good as many: there
is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.service import queries
from sync_orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

SCOPES = ("events:<source>", "events:*", "conflicts:<entity>", "conflicts:*", "proxy", "metrics", "admin")
"""What a key may be good for: to record events of one source system or of all, and to see what became of them; to see
and decide the conflicts of one entity with two_way or of all; to use the proxy's routes; to read ``/metrics``;
everything."""

_KEY = re.compile(r"sync_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what for."""

    name: str
    scopes: frozenset[str]

    def has_scope(self, scope: str) -> bool:
        """Whether its scopes cover this one."""
        kind, _, what = scope.partition(":")
        return bool({scope, "admin"} & self.scopes) or (what != "" and f"{kind}:*" in self.scopes)

    def may_record(self) -> bool:
        """Whether its scopes cover the events of any source system."""
        return "admin" in self.scopes or any(scope.startswith("events:") for scope in self.scopes)


def make_key(
    connection: Connection,
    name: str,
    scopes: Sequence[str],
    sources: Collection[str],
    lifetime: float | None = None,
    *,
    two_way: Collection[str] = (),
) -> str:
    """Makes a key and returns it: the only time that it can be seen. ``lifetime`` in seconds, None: without end.

    ``two_way``: the entities whose conflicts a scope can name.

    Raises NotFound for a scope that there is not.
    """
    known = {"events:*", "proxy", "metrics", "admin", *(f"events:{source}" for source in sources)}
    if two_way:
        known |= {"conflicts:*", *(f"conflicts:{entity}" for entity in two_way)}
    if not scopes or not set(scopes) <= known:
        wrong = sorted(set(scopes) - known) or ["none"]
        raise NotFound(f"no scope {wrong[0]}: there is {', '.join(sorted(known))}")
    if not name.strip():
        raise UsageError("a key needs a name: whose is it?")
    ident = secrets.token_hex(6)
    key = f"sync_{ident}_{secrets.token_urlsafe(32)}"
    run(
        connection,
        queries.INSERT_API_KEY,
        id=ident,
        name=name,
        secret=_hash_key(key),
        scopes=sorted(set(scopes)),
        lifetime=lifetime,
    )
    return key


def is_key_shaped(text: str) -> bool:
    """Whether a text can be a key at all: nothing else is worth a look at the database."""
    return _KEY.fullmatch(text) is not None


def find_caller_by_key(connection: Connection, key: str) -> Caller | None:
    """Whose key it is; None for one that is not good, or not any more."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    for row in run(connection, queries.FIND_API_KEY, id=match[1]):
        if hmac.compare_digest(bytes(row.secret), _hash_key(key)):
            run(connection, queries.NOTE_API_KEY_USED, id=row.id)
            return Caller(row.name, frozenset(row.scopes))
    return None


def list_keys(connection: Connection) -> Sequence[Row[tuple[object, ...]]]:
    """All keys that were made, without their secrets: id, name, scopes, created_at, expires_at, revoked_at, used_at."""
    return run(connection, queries.LIST_API_KEYS)


def revoke_key(connection: Connection, ident: str) -> None:
    """Ends a key, by its id or by the key itself. Services that know it forget it within seconds.

    Raises NotFound.
    """
    match = _KEY.fullmatch(ident)
    if not run(connection, queries.REVOKE_API_KEY, id=match[1] if match else ident):
        raise NotFound("there is no such key; `sync-orchestrator keys list` shows them")


def _hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
