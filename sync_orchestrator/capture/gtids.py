"""Positions in the binlog of MariaDB and MySQL, by global transaction ids. Pure.

MariaDB numbers the transactions of each domain, so its position is the last one of each: ``0-1-270``. MySQL keeps the
set of all that were executed: ``3e11fa47-71ca-11e1-9e33-c80aa9429562:1-270``. The text of a position begins with the
kind of the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_MARIADB = "mariadb:"
_MYSQL = "mysql:"
_GTID = re.compile(r"(\d+)-(\d+)-(\d+)")
_SET = re.compile(r"([0-9a-f-]{36})((?::\d+(?:-\d+)?)+)")

Interval = tuple[int, int]


class GtidPosition(Protocol):
    """All transactions before a place in a binlog."""

    @property
    def server_text(self) -> str:
        """It as the server writes and takes it."""

    def contains(self, gtid: str) -> bool:
        """Whether a transaction is among them."""

    def add(self, gtid: str) -> GtidPosition:
        """Returns it with one transaction more."""

    def unite(self, other: GtidPosition) -> GtidPosition:
        """Returns what either has. Raises ValueError for a position of another kind of server."""

    def covers(self, other: GtidPosition) -> bool:
        """Whether it has all that another one has."""


@dataclass(frozen=True, slots=True)
class MariadbPosition:
    """The last transaction of each domain: its server and number, by domain."""

    last: Mapping[int, tuple[int, int]]

    @classmethod
    def parse(cls, text: str) -> MariadbPosition:
        """Reads what ``@@gtid_binlog_pos`` shows. Raises ValueError."""
        last: dict[int, tuple[int, int]] = {}
        for each in filter(None, text.replace(" ", "").split(",")):
            domain, server, number = _parse_gtid(each)
            if number >= last.get(domain, (0, 0))[1]:
                last[domain] = server, number
        return cls(last)

    @property
    def server_text(self) -> str:
        """It as the server writes and takes it."""
        return ",".join(f"{domain}-{server}-{number}" for domain, (server, number) in sorted(self.last.items()))

    def contains(self, gtid: str) -> bool:
        """Whether a transaction is among them."""
        domain, _, number = _parse_gtid(gtid)
        return number <= self.last.get(domain, (0, 0))[1]

    def add(self, gtid: str) -> MariadbPosition:
        """Returns it with one transaction more: the newest of its domain, whatever its number."""
        domain, server, number = _parse_gtid(gtid)
        return MariadbPosition({**self.last, domain: (server, number)})

    def unite(self, other: GtidPosition) -> MariadbPosition:
        """Returns what either has. Raises ValueError for a position of another kind of server."""
        if not isinstance(other, MariadbPosition):
            raise ValueError("a position of MySQL, and one of MariaDB")
        both = dict(self.last)
        for domain, (server, number) in other.last.items():
            if number > both.get(domain, (0, 0))[1]:
                both[domain] = server, number
        return MariadbPosition(both)

    def covers(self, other: GtidPosition) -> bool:
        """Whether it has all that another one has."""
        return isinstance(other, MariadbPosition) and all(
            number <= self.last.get(domain, (0, 0))[1] for domain, (_, number) in other.last.items()
        )

    def __str__(self) -> str:
        return _MARIADB + self.server_text


@dataclass(frozen=True, slots=True)
class MysqlPosition:
    """The executed transactions of each server: intervals with both ends, sorted and apart, by the server's UUID."""

    sets: Mapping[str, tuple[Interval, ...]]

    @classmethod
    def parse(cls, text: str) -> MysqlPosition:
        """Reads what ``@@gtid_executed`` shows. Raises ValueError."""
        sets: dict[str, list[Interval]] = {}
        for each in filter(None, re.sub(r"\s", "", text).lower().split(",")):
            found = _SET.fullmatch(each)
            if found is None:
                raise ValueError(f"no set of GTIDs of MySQL: {each}")
            for interval in found[2][1:].split(":"):
                first, _, last = interval.partition("-")
                sets.setdefault(found[1], []).append((int(first), int(last or first)))
        return cls({server: _join_intervals(intervals) for server, intervals in sets.items()})

    @property
    def server_text(self) -> str:
        """It as the server writes and takes it."""
        return ",".join(
            server + "".join(f":{first}-{last}" if last > first else f":{first}" for first, last in intervals)
            for server, intervals in sorted(self.sets.items())
        )

    def contains(self, gtid: str) -> bool:
        """Whether a transaction is among them."""
        return self.covers(MysqlPosition.parse(gtid))

    def add(self, gtid: str) -> MysqlPosition:
        """Returns it with one transaction more."""
        server, _, number = gtid.lower().rpartition(":")
        one = int(number)
        intervals = self.sets.get(server, ())
        if intervals and intervals[-1][1] == one - 1:  # what a server sends is nearly always the next one
            joined: tuple[Interval, ...] = (*intervals[:-1], (intervals[-1][0], one))
        else:
            joined = _join_intervals([*intervals, (one, one)])
        return MysqlPosition({**self.sets, server: joined})

    def unite(self, other: GtidPosition) -> MysqlPosition:
        """Returns what either has. Raises ValueError for a position of another kind of server."""
        if not isinstance(other, MysqlPosition):
            raise ValueError("a position of MySQL, and one of MariaDB")
        servers = self.sets.keys() | other.sets.keys()
        return MysqlPosition(
            {name: _join_intervals([*self.sets.get(name, ()), *other.sets.get(name, ())]) for name in servers}
        )

    def covers(self, other: GtidPosition) -> bool:
        """Whether it has all that another one has."""
        return isinstance(other, MysqlPosition) and all(
            any(mine[0] <= interval[0] and interval[1] <= mine[1] for mine in self.sets.get(server, ()))
            for server, intervals in other.sets.items()
            for interval in intervals
        )

    def __str__(self) -> str:
        return _MYSQL + self.server_text


def is_gtid_position(text: str) -> bool:
    """Whether a stream's position is one of MariaDB or MySQL."""
    return text.startswith((_MARIADB, _MYSQL))


def parse_gtid_position(text: str) -> MariadbPosition | MysqlPosition:
    """Reads a position as a stream keeps it. Raises ValueError."""
    if text.startswith(_MARIADB):
        return MariadbPosition.parse(text.removeprefix(_MARIADB))
    if text.startswith(_MYSQL):
        return MysqlPosition.parse(text.removeprefix(_MYSQL))
    raise ValueError(f"no position in a binlog: {text}")


def _parse_gtid(gtid: str) -> tuple[int, int, int]:
    found = _GTID.fullmatch(gtid)
    if found is None:
        raise ValueError(f"no GTID of MariaDB: {gtid}")
    return int(found[1]), int(found[2]), int(found[3])


def _join_intervals(intervals: list[Interval]) -> tuple[Interval, ...]:
    joined: list[Interval] = []
    for first, last in sorted(intervals):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)
