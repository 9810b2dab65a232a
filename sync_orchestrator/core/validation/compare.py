"""Ours against theirs, for one business group: which records are suspect, and of what. Pure, on pandas tables.

Not here: asking the third party and believing a suspect (``validation.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from sync_orchestrator.core.validation.spill import Row
from sync_orchestrator.core.values.places import digest_elsewhere

Kind = Literal["missing", "stale", "different", "extra", "duplicate", "unmanaged"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that looks wrong there. ``ours`` and ``theirs`` are digests; ``revision`` 0: unknown here.

    ``belongs_to``: the business group in which it should be, for one that is shown in another. ``known_id``: the id
    under which it was acknowledged, which may be another one than ``external_id``, under which it is shown.
    """

    key: str
    kind: Kind
    external_id: str | None
    ours: bytes | None
    theirs: bytes | None
    revision: int = 0
    applied_at: Any = None
    belongs_to: str | None = None
    known_id: str | None = None


OURS = [
    "key",
    "external_id",
    "applied_digest",
    "prior_digest",
    "revision",
    "applied_at",
    "deleted",
    "ever_applied",
    "present",
    "ambiguous",
]
THEIRS = ["key", "external_id", "digest"]


def suspects(ours: Iterable[Any], theirs: Iterable[Row]) -> tuple[list[Suspect], set[str]]:
    """Compares some keys of a group, leaving ambiguous records out of judgement.

    ``ours``: rows of ``statements.validation.OURS``; ``theirs``: all that is listed there of the same keys.
    Returns the suspects, and the keys that the third party shows here and the archive does not have in this group.
    """
    mine = pd.DataFrame([tuple(row) for row in ours], columns=OURS, dtype=object)
    there = pd.DataFrame(list(theirs), columns=THEIRS, dtype=object).drop_duplicates(["key", "external_id"])
    keyed = there[there["key"].notna()]
    both = mine.merge(keyed, on="key", how="outer", suffixes=("", "_theirs"), indicator=True)
    judged = both[~both["ambiguous"].astype("boolean").fillna(False).astype(bool)]
    known = judged[judged["_merge"] != "right_only"]
    present = known[known["present"].astype(bool)]
    found = [
        *_missing(present),
        *_different(present),
        *_duplicates(known),
        *_extra(known[~known["present"].astype(bool) & (known["_merge"] == "both")]),
    ]
    unknown = set(judged.loc[judged["_merge"] == "right_only", "key"])
    return found, unknown


def unmanaged(there: Iterable[Row], keys: set[str]) -> list[Suspect]:
    """The third party's records without a key of ours, or with one of ``keys``, which nobody here knows."""
    return [
        Suspect(key or str(external_id), "unmanaged", external_id, None, theirs)
        for key, external_id, theirs in there
        if key is None or key in keys
    ]


def misplaced(
    there: Iterable[Row], rows: Iterable[Any], *, group_in_address: bool, group_is_known: bool
) -> list[Suspect]:
    """Records with a key of ours in a group where it does not belong (rule 12).

    ``rows``: those of ``statements.validation.ELSEWHERE``. With a ``group_in_address`` the same id in two groups is two
    records; otherwise it is one, which is shown late or was never moved. A copy of a live record is a
    duplicate; what is
    left of a deleted one is extra. A record that names the group in which it belongs is only listed too widely. So may
    each be where neither the listing nor the record says a group (``group_is_known`` is False).
    """
    ours = {row.key: row for row in rows if not row.ambiguous}
    found = []
    for key, external_id, theirs in there:
        if key is None or (row := ours.get(key)) is None:
            continue
        if row.deleted:
            kind: Kind = "extra" if row.ever_applied else "unmanaged"
        elif group_in_address or external_id != row.external_id:
            kind = "duplicate"
        elif group_is_known and row.group_key is not None and theirs != _shown_in_its_group(row):
            kind = "different"
        else:
            continue
        belongs_to = None if row.deleted else row.group_key
        found.append(
            Suspect(
                key,
                kind,
                external_id,
                _bytes(row.applied_digest),
                theirs,
                row.revision,
                row.applied_at,
                belongs_to,
                row.external_id,
            )
        )
    return found


def _shown_in_its_group(row: Any) -> bytes | None:
    """The digest of a record that names the group in which it belongs, when another one is compared."""
    applied = _bytes(row.applied_digest)
    return None if applied is None else digest_elsewhere(applied, row.group_key)


def _missing(present: pd.DataFrame) -> list[Suspect]:
    return [_suspect(row, "missing") for row in present[present["_merge"] == "left_only"].itertuples()]


def _different(present: pd.DataFrame) -> list[Suspect]:
    here = present[present["_merge"] == "both"]
    ours_there = here[here["external_id"] == here["external_id_theirs"]]
    replaced = here[~here["key"].isin(ours_there["key"])].drop_duplicates("key")
    wrong = ours_there[ours_there["applied_digest"].map(_hex) != ours_there["digest"].map(_hex)]
    return [
        _suspect(row, "stale" if _hex(row.prior_digest) == _hex(row.digest) else "different")
        for row in pd.concat([wrong, replaced]).itertuples()
    ]


def _duplicates(known: pd.DataFrame) -> list[Suspect]:
    both = known[known["_merge"] == "both"]
    many = both[both.duplicated("key", keep=False)]
    return [
        _suspect(row, "duplicate") for row in many.itertuples() if str(row.external_id) != str(row.external_id_theirs)
    ]


def _extra(gone: pd.DataFrame) -> list[Suspect]:
    return [
        _suspect(row, "extra" if row.ever_applied else "unmanaged")
        for row in gone.drop_duplicates("key").itertuples()
        if row.deleted
    ]


def _suspect(row: Any, kind: Kind) -> Suspect:
    there = row._merge == "both" if hasattr(row, "_merge") else kind != "missing"
    return Suspect(
        row.key,
        kind,
        row.external_id_theirs if there else row.external_id,
        _bytes(row.applied_digest),
        _bytes(row.digest) if there else None,
        int(row.revision),
        _none(row.applied_at),
        known_id=_none(row.external_id),
    )


def _none(value: Any) -> Any:
    return None if value is None or value is pd.NaT else value


def _bytes(value: Any) -> bytes | None:
    return bytes(value) if isinstance(value, bytes | memoryview) else None


def _hex(value: Any) -> str:
    found = _bytes(value)
    return "" if found is None else found.hex()
