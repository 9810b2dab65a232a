"""The statements of the processes that hold claims, and the condition under which a claim is free.

Whether a holder is gone is final: the heartbeat of a holder that was not heard of for ``VALID_SECONDS`` is refused, and
it goes on under another id. So a statement may judge by the heartbeats of its snapshot, however old that is.
"""

VALID_SECONDS = 6.0
"""A holder whose last heartbeat began longer ago begins no calls under its claims."""

GONE_SECONDS = 10.0
"""A holder that was not heard of for this long is gone, and its claims are free."""

BEGIN = """
INSERT INTO sync.holders (id, name) VALUES (nextval('sync.ticket'), %(name)s) RETURNING id
"""

BEAT = f"""
UPDATE sync.holders SET at = sync.clock()
WHERE id = %(id)s AND at >= sync.clock() - interval '{VALID_SECONDS:g} s'
RETURNING id
"""

END = "DELETE FROM sync.holders WHERE id = %(id)s"

# Leases that ran out say all that is to be said of the claims of these.
FORGET = "DELETE FROM sync.holders WHERE at < sync.clock() - make_interval(secs => %(seconds)s)"

GONE = f"ARRAY(SELECT id FROM sync.holders WHERE at < sync.clock() - interval '{GONE_SECONDS:g} s')"
"""The ids of the holders that are gone; found once a statement."""


def is_free(table: str = "") -> str:
    """The condition under which a row of records may be claimed; ``table``: its alias with a dot."""
    return (f"({table}lease_until IS NULL OR {table}lease_until < sync.clock() OR {table}lease_holder = ANY({GONE}))")


def ends_at(table: str, seconds: float | str) -> str:
    """The end of a row's lease, or ``seconds`` after the last heartbeat of its holder where that is sooner."""
    return (f"least({table}lease_until, (SELECT h.at + make_interval(secs => {seconds}) FROM sync.holders h "
            f"WHERE h.id = {table}lease_holder))")
