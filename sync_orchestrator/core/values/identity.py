"""Whose record a third party shows under an id: compares keys, and says which ids can be given to another record.

Pure. Nothing is overwritten or deleted under an id that shows another key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sync_orchestrator.texts.unicode_forms import normalize_text

_NEVER_GIVEN_AGAIN = re.compile(
    r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}"  # UUID
    r"|[0-9a-f]{24}"  # ObjectId
    r"|[0-7][0-9a-hjkmnp-tv-z]{25}",  # ULID
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StrayId:
    """An id that was given to us and under which the third party shows another record, by its key."""

    external_id: str
    shown_key: str


def other_key(key: str, shown: str | None) -> str | None:
    """The key that a record shows, if it is another record's; None if it is ours, or shows no key at all.

    A third party may change a key's letter case, padding or Unicode form. That is our record all the same.
    """
    return None if not shown or _fold_key(shown) == _fold_key(key) else shown


def may_be_given_again(external_id: str) -> bool:
    """Whether a third party can give this id to another record: a number from a sequence, but not a random one.

    Random ids (UUID, ObjectId, ULID) do not come again, also after the third party was restored from a backup.
    """
    return external_id.isdecimal() or _NEVER_GIVEN_AGAIN.fullmatch(external_id) is None


def _fold_key(key: str) -> str:
    return normalize_text("NFKC", key).strip().casefold()
