"""Whether the third party shows a record in its business group, and how a difference of group or id is written. Pure.

The business group is compared beside the mapped fields: a record with the right fields in another group, or in none, is
different.
"""

from __future__ import annotations

from collections.abc import Mapping as NamedValues
from typing import Any

from sync_orchestrator.core.ports import Capabilities, Found
from sync_orchestrator.core.values.mapping import Mapping, compute_digest

GROUP_FIELD = "(business group)"
"""The name under which a sample shows the business group; no mapped field can be confused with it."""
ID_FIELD = "(id)"
"""The name under which a sample shows the third party's id."""


def is_elsewhere(capabilities: Capabilities, shown: str | None, group: str | None) -> bool:
    """Whether a record that shows a business group is not in ``group``. One that shows none is in none."""
    return capabilities.shows_group if shown is None else shown != group


def digest_of_found(mapping: Mapping, capabilities: Capabilities, found: Found, group: str | None) -> bytes:
    """The digest of a record that the third party shows, as one of a business group.

    That of its mapped fields where it is in the group, and one that no payload has where it is elsewhere.
    """
    fields = mapping.digest_of_theirs(found.fields)
    return digest_elsewhere(fields, found.group) if is_elsewhere(capabilities, found.group, group) else fields


def digest_elsewhere(fields: bytes, group: str | None) -> bytes:
    """The digest of a record that shows another business group than it should; ``fields`` is that of its fields."""
    return compute_digest([fields.hex(), group])


def digest_of_write(payload: bytes | None, capabilities: Capabilities, group: str | None) -> bytes | None:
    """What a refusal is remembered by: the payload's digest, with the business group where that is sent, too."""
    if payload is None or not (capabilities.sends_group or capabilities.group_in_address):
        return payload
    return compute_digest([payload.hex(), group])


def differences_of_place(
    capabilities: Capabilities, *, group: str | None, external_id: str | None, found: Found
) -> list[dict[str, Any]]:
    """Rows of field, ours, theirs for the business group and the id, where they differ.

    Args:
        capabilities: What the third party can do.
        group: The business group in which the record should be.
        external_id: The id under which it was acknowledged; None where that is not known.
        found: The record as the third party shows it.
    """
    rows = []
    if is_elsewhere(capabilities, found.group, group):
        rows.append({"field": GROUP_FIELD, "ours": group, "theirs": found.group})
    if external_id is not None and found.external_id != external_id:
        rows.append({"field": ID_FIELD, "ours": external_id, "theirs": found.external_id})
    return rows


def what_differs(sample: list[dict[str, object]], *, most: int = 3) -> str:
    """What a sample says, in a few words for an alert: names of fields, with the values of group and id."""
    words = [_in_words(row) for row in sample[:most]]
    more = len(sample) - most
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _in_words(row: NamedValues[str, object]) -> str:
    if row["field"] not in (GROUP_FIELD, ID_FIELD):
        return str(row["field"])
    name = "business group" if row["field"] == GROUP_FIELD else "id"
    theirs = "none" if row["theirs"] is None else row["theirs"]
    return f"{name} {theirs} there, {row['ours']} expected"
