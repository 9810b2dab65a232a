"""Pieces of SQL that the queries of several packages share."""

HOLDER_VALID_SECONDS = 6.0
"""A holder whose last heartbeat began longer ago begins no calls under its claims."""

HOLDER_GONE_SECONDS = 10.0
"""A holder that was not heard of for this long is gone, and its claims are free."""

HOLDER_IS_GONE = f"ARRAY(SELECT id FROM sync.holders WHERE at < sync.clock() - interval '{HOLDER_GONE_SECONDS:g} s')"
"""The ids of the holders that are gone; found once a statement."""


def claim_is_free(table: str = "") -> str:
    """The condition under which a row of records may be claimed; ``table``: its alias with a dot."""
    has_ended = f"{table}lease_until < sync.clock()"
    return f"({table}lease_until IS NULL OR {has_ended} OR {table}lease_holder = ANY({HOLDER_IS_GONE}))"


def claim_ends_at(table: str, seconds: float | str) -> str:
    """The end of a row's lease, or ``seconds`` after the last heartbeat of its holder where that is sooner."""
    return (
        f"least({table}lease_until, (SELECT h.at + make_interval(secs => {seconds}) FROM sync.holders h "
        f"WHERE h.id = {table}lease_holder))"
    )


# The keys of an entity, to join with. OFFSET 0 hides from the planner that the entity is one and the same: where its
# statistics lag behind a table that grows it would read all records of the entity rather than look up these.
OF_KEYS = "(SELECT %(entity)s::text AS entity, key FROM unnest(%(keys)s::text[]) AS key OFFSET 0)"


def is_announced(part: str) -> str:
    """The condition that the ledger has a delete event of a part of the archive, which is no older than the part.

    Such a deletion was notified: it is the event's, and not inferred. What a poll or a check of the sources inferred is
    an event of another origin. ``part``: the alias of the part's row.
    """
    return (
        f"EXISTS (SELECT FROM sync.events e WHERE e.entity = {part}.entity AND e.key = {part}.key "
        f"AND e.source = {part}.part AND e.action = 'delete' "
        f"AND e.origin IN ('notification', 'capture') AND e.revision IS NULL "
        f"AND (e.epoch, e.version) >= ({part}.epoch, {part}.version) OFFSET 0)"
    )
