"""What a captured table is known by, so that a change of it that the log does not tell is noticed. Pure.

A mark has pieces: what the table is known by, its place in the publication, the state of the publication, its shape,
and how its rows are taken. The shape has an element for each column, and for each relation that stores rows. Marks of
sources without shapes, and those of earlier versions, have fewer pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_PIECES = "/"
_ELEMENTS = ","
_HARMLESS = "+"
_SHAPE = 3
_USES = 4


def build_mark(
    table: str, membership: str, publication: str, shape: Iterable[tuple[str, bool]], uses: Mapping[str, str]
) -> str:
    """Returns the mark of a table.

    Args:
        table: What the table is known by in its database.
        membership: What its place in the publication is known by.
        publication: Another text each time that the publication was altered.
        shape: The elements. Each with whether its arrival changes no row: an empty partition, a column of NULLs.
        uses: By what an entity is known by, how its key and group are taken from the rows.
    """
    elements = _ELEMENTS.join(f"{element}{_HARMLESS if is_harmless else ''}" for element, is_harmless in shape)
    taken = _ELEMENTS.join(f"{entity}={use}" for entity, use in sorted(uses.items()))
    return _PIECES.join((table, membership, publication, elements, taken))


def describe_difference(table: str, known: str, present: str) -> str | None:
    """Says in a sentence why changes of a table may be missing; None where they are not.

    Args:
        table: The table, as it is configured.
        known: Its mark when it was last looked at.
        present: Its mark now.
    """
    before, now = known.split(_PIECES), present.split(_PIECES)
    common = min(len(before), len(now), _SHAPE)
    if before[:common] != now[:common]:
        return f"changes of {table} are captured only since then"
    if len(before) <= _SHAPE or len(now) <= _SHAPE:
        return None
    if len(before) > _USES and len(now) > _USES:
        taken_before, taken_now = (dict(_split_use(each) for each in _list_elements(p[_USES])) for p in (before, now))
        if any(taken_now.get(entity, use) != use for entity, use in taken_before.items()):
            return f"the key or the group of {table} is configured in another way than before"
    old, new = (set(_list_elements(pieces[_SHAPE])) for pieces in (before, now))
    if old <= new and all(each.endswith(_HARMLESS) for each in new - old):
        return None
    return (
        f"{table} was altered or rewritten, or a partition was attached, detached, dropped or emptied: its rows may "
        "have changed, and the log does not show how"
    )


def _list_elements(piece: str) -> list[str]:
    return [each for each in piece.split(_ELEMENTS) if each]


def _split_use(element: str) -> tuple[str, str]:
    entity, _, use = element.partition("=")
    return entity, use


def read_table_identity(mark: str) -> int:
    """What a Postgres knows the table of a mark by."""
    return int(mark.partition(_PIECES)[0])
