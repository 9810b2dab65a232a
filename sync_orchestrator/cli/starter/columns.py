"""Guesses which columns of a source are key, version and business group, from names, types and indexes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

ColumnKind = Literal["text", "number", "time", "bool", "binary", "other"]

KEY_NAMES = (
    "sku",
    "code",
    "number",
    "no",
    "external_id",
    "externalid",
    "reference",
    "ref",
    "uuid",
    "guid",
    "key",
    "handle",
    "slug",
    "ean",
    "gtin",
    "name",
)
GROUP_NAMES = (
    "shop",
    "store",
    "merchant",
    "tenant",
    "company",
    "warehouse",
    "location",
    "site",
    "branch",
    "plant",
    "channel",
    "market",
    "region",
    "country",
    "customer",
    "account",
    "organization",
    "organisation",
    "brand",
    "category",
    "department",
    "project",
    "team",
    "locale",
    "language",
    "type",
)
VERSION_NAMES = (
    "updatedat",
    "updated",
    "updatedon",
    "modifiedat",
    "modified",
    "modifiedon",
    "lastmodified",
    "lastmodifiedat",
    "lastupdated",
    "lastupdate",
    "changedat",
    "changed",
    "writedate",
    "datemodified",
    "dateupdated",
    "updatetime",
    "mtime",
    "tstamp",
    "timestamp",
)
REVISION_NAMES = ("version", "revision", "rev", "rowversion", "lockversion", "versionnumber")
_CREATED = re.compile(r"creat|insert|birth|deleted")
_SECRET = re.compile(r"passw|secret|token|hash|salt|apikey")


@dataclass(frozen=True, slots=True)
class Column:
    """One column or field of a source.

    ``is_unique``: a primary key or unique index has it alone, or no two rows that were read have the same value.
    ``is_indexed``: an index begins with it. ``repeats``: rows that were read share values; None where none were read.
    """

    name: str
    kind: ColumnKind = "other"
    is_primary: bool = False
    is_unique: bool = False
    is_indexed: bool = False
    is_foreign: bool = False
    is_nullable: bool = True
    repeats: bool | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """A setting that was guessed, and why; ``value`` is None where nothing fits."""

    value: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Guesses:
    """What the columns of a source are taken for."""

    key: Guess
    version: Guess
    version_kind: Literal["time", "number"]
    group: Guess


def guess_columns(
    columns: Sequence[Column],
    entity: str,
    theirs: Collection[str] = (),
    chosen: Collection[str] = (),
) -> Guesses:
    """Guesses key, version and business group of a source.

    Args:
        columns: What the source has, in its own order.
        entity: What a record is called, such as ``product``: ``product_id`` counts as its id.
        theirs: The fields of the third party, where they are known: a unique column that is named like one of them
            and like a key is preferred to a primary key that they have no field for.
        chosen: The columns that have a role already, by an option. They are guessed for no other role.
    """
    free = [column for column in columns if column.name not in chosen]
    key = _shared_key(free, theirs) or _guess_key(free, entity)
    version, kind = _guess_version([column for column in free if column.name != key.value])
    group = _guess_group([column for column in free if column.name not in (key.value, version.value)])
    return Guesses(key, version, kind, group)


def version_kind_of(column: Column) -> Literal["time", "number"]:
    """The kind of version that a column gives which an operator chose."""
    guess, kind = _guess_version([column])
    return kind if guess.value is not None else "number" if column.kind == "number" else "time"


def copied_columns(columns: Sequence[Column], chosen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the columns to copy, and those to leave out: binary ones, and those that are named like secrets.

    Neither has the columns of ``chosen``, which have a role of their own, nor what tells nothing of a record's content:
    a numbered primary key, and the times of creation and of the last change.
    """
    others = [column for column in columns if column.name not in chosen]
    left_out = tuple(
        column.name for column in others if column.kind == "binary" or _SECRET.search(plain_name(column.name))
    )
    primary = [column.name for column in columns if column.is_primary]
    return tuple(
        column.name
        for column in others
        if column.name not in left_out
        and not _is_housekeeping(column)
        and not (primary == [column.name] and (column.kind == "number" or plain_name(column.name) == "id"))
    ), left_out


def _is_housekeeping(column: Column) -> bool:
    name = plain_name(column.name)
    return name in REVISION_NAMES or (column.kind == "time" and (name in VERSION_NAMES or bool(_CREATED.search(name))))


def plain_name(name: str) -> str:
    """A name without case, blanks and signs, so that ``updatedAt`` and ``updated_at`` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def group_forms(name: str) -> tuple[str, ...]:
    """The plain names under which a part of the data such as ``shop`` is referred to."""
    return (name, *(f"{name}{end}" for end in ("id", "code", "no", "key", "name", "number")))


def _shared_key(columns: Sequence[Column], theirs: Collection[str]) -> Guess | None:
    known = {plain_name(name) for name in theirs}
    for name in map(plain_name, KEY_NAMES):
        for column in columns:
            if plain_name(column.name) == name and name in known and column.is_unique:
                return Guess(column.name, "unique, and a field of this name holds it there")
    return None


def _guess_key(columns: Sequence[Column], entity: str) -> Guess:
    primary = [column for column in columns if column.is_primary]
    if len(primary) == 1:
        others = [
            column.name
            for column in columns
            if column.is_unique and not column.is_primary and column.kind in ("text", "number")
        ]
        also = f"; unique, too: {', '.join(others)}" if others else ""
        return Guess(primary[0].name, f"the primary key{also}")
    unique = [column for column in columns if column.is_unique and column.kind in ("text", "number")]
    names = ["id", *group_forms(plain_name(entity)), *map(plain_name, KEY_NAMES)]
    for name in (f"{plain_name(entity)}id", *names):
        for column in unique:
            if plain_name(column.name) == name:
                return Guess(column.name, "unique, by its name")
    if unique and (primary or any(column.repeats is None for column in unique)):
        return Guess(unique[0].name, "the first unique column")
    for name in names:
        for column in columns:
            if plain_name(column.name) == name and column.repeats is not True and column.kind in ("text", "number"):
                return Guess(column.name, "by its name; nothing says that it is unique")
    why = (
        f"the primary key has several columns ({', '.join(column.name for column in primary)})"
        if primary
        else ("no column is unique")
    )
    return Guess(None, why)


def _guess_version(columns: Sequence[Column]) -> tuple[Guess, Literal["time", "number"]]:
    for name in VERSION_NAMES:
        for column in columns:
            if plain_name(column.name) == name and column.kind in ("time", "number"):
                return Guess(column.name, "by its name and type"), "time"
    for name in REVISION_NAMES:
        for column in columns:
            if plain_name(column.name) == name and column.kind == "number":
                return Guess(column.name, "a number, by its name"), "number"
    times = [column for column in columns if column.kind == "time" and not _CREATED.search(plain_name(column.name))]
    if len(times) == 1:
        return Guess(times[0].name, "the only time besides that of creation"), "time"
    return Guess(None, "no column is named like a time or number that grows with each change"), "time"


def _guess_group(columns: Sequence[Column]) -> Guess:
    fitting = [
        column
        for column in columns
        if not column.is_unique and column.repeats is not False and column.kind in ("text", "number", "other")
    ]
    for is_foreign in (True, False):
        for name in GROUP_NAMES:
            for column in fitting:
                if column.is_foreign >= is_foreign and plain_name(column.name) in group_forms(name):
                    why = "a foreign key, by its name" if column.is_foreign else "by its name"
                    nullable = (
                        "; rows without a value belong to no group"
                        if column.is_nullable and (column.repeats is None)
                        else ""
                    )
                    return Guess(column.name, why + nullable)
    foreign = [column for column in fitting if column.is_foreign]
    if len(foreign) == 1:
        return Guess(foreign[0].name, "the only foreign key")
    return Guess(None, "no column is named like a shop, store, tenant or another part of the data")
