"""A source with a log, its reader, drains and full syncs in any interleaving: versions are the stream's numbers.

The source is a model: transactions are in its log once they are committed, and reads see them then or later, as where
a commit waits for a replica. The reader is the real one, on a log in memory. Both go on while a full sync or a drain
reads, between a read and its merge, and whenever a read waits for the stream. Clocks lie: no time is of any use.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, ClassVar

import pytest
from fakes import FakeSource, FakeThirdParty
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Engine, event

from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.capture import assembly, postgres_log
from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.changes import ChangeReader, PresentTable
from sync_orchestrator.capture.parts import entities_by_table, list_captured_tables, numbered_entities
from sync_orchestrator.capture.pgoutput import (
    UNCHANGED,
    PgMessage,
    Relation,
    RelationColumn,
    RowChange,
    TransactionBegin,
    TransactionEnd,
)
from sync_orchestrator.capture.postgres import Keepalive, VisibleTransactions
from sync_orchestrator.capture.postgres_log import PostgresCapture, PostgresCaptureLog
from sync_orchestrator.capture.recording import StreamPosition
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.capture import holds, streams
from sync_orchestrator.core.capture.streams import CaptureStream
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain import event_batch
from sync_orchestrator.core.full_sync.full_sync import fill_archive
from sync_orchestrator.core.ledger.event_claims import release_expired_events
from sync_orchestrator.core.ports import LogEnd, PartRead
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import CallFailed, DeletionsHeld, GroupBusy

KEYS = [f"k{number}" for number in range(6)]
GROUPS = ["A", "B"]
COLUMNS = ("sku", "store", "name", "big")
TEXT_OID = 25
RELATION_OID = 7
COMMANDS = {
    "commit": 6,
    "reveal": 2,
    "read_log": 4,
    "drain": 3,
    "full_sync": 3,
    "check_source": 0.7,
    "stall": 0.5,
    "reader_dies": 1,
    "work_dies": 1,
    "time_passes": 1,
}
READER_POINTS = ("capture.taken", "capture.before_commit", "capture.committed", "capture.acknowledged")
WORK_POINTS = (
    "capture.page_noted",
    "full_sync.page_read",
    "full_sync.before_page_commit",
    "full_sync.page_merged",
    "events.taken",
    "events.read",
    "events.before_merge_commit",
    "events.merged",
)
TABLES = (
    "events, event_history, event_ids, tallies, parts, records, groups, full_sync_keys, alerts, alert_receivers, "
    "alert_records, inferred_deletions, lost_notifications, lost_tallies, streams"
)


class Killed(BaseException):
    """The process is gone; of a reader, or of a full sync or a drain."""


class ReaderKilled(Killed):
    """The reader's process is gone."""


Row = dict[str, str]


@dataclass
class Transaction:
    """A committed transaction. ``writes``: what it did to each key, in order; None for a delete."""

    xid: int
    lsn: int
    end: int
    committed_at: int
    writes: list[tuple[str, Row | None, Row | None]]
    """Key, the row before, and the row after."""


class ModelDatabase(FakeSource):
    """The source: ``rows`` is what reads see, ``newest`` what is committed."""

    can_list_keys = True

    def __init__(self, random: Callable[[str], Random]) -> None:
        super().__init__(page=2)
        self.lock = threading.RLock()
        self.random = random
        self.newest: dict[str, Row] = {}
        self.log: list[Transaction] = []
        self.hidden: list[Transaction] = []
        self.history: dict[str, list[Row | None]] = defaultdict(lambda: [None])
        self.confirmed = 0
        self.end = 0x100
        self._xid = 1000
        self._names = 0
        self.meanwhile: Callable[[str], Any] = lambda place: None

    def commit(self) -> None:
        """A transaction of one to five writes; rows that a hidden transaction wrote are locked."""
        with self.lock:
            draw = self.random("commit")
            locked = {key for each in self.hidden for key, _, _ in each.writes}
            free = [key for key in KEYS if key not in locked]
            if not free:
                return
            writes = []
            for _ in range(draw.choice([1, 1, 1, 2, 5])):
                key = draw.choice(free)
                before = self.newest.get(key)
                after = None if before is not None and draw.random() < 0.25 else self._new_row(key, before, draw)
                writes.append((key, before, after))
                self.history[key].append(after)
                if after is None:
                    del self.newest[key]
                else:
                    self.newest[key] = after
            self._xid += 1
            lies = draw.randrange(1, 10_000_000)
            made = Transaction(self._xid, self.end + 16, self.end + 32, lies, writes)
            self.end += 48
            self.log.append(made)
            self.hidden.append(made)
            if draw.random() < 0.6:
                self.reveal(made)

    def _new_row(self, key: str, before: Row | None, draw: Random) -> Row:
        self._names += 1
        keeps_big = before is not None and draw.random() < 0.5
        big = before["big"] if before is not None and keeps_big else f"big{self._names}"
        return {"sku": key, "store": draw.choice(GROUPS), "name": f"n{self._names}", "big": big}

    def reveal(self, which: Transaction | None = None) -> None:
        """Reads see a transaction from now on; by default any that they did not see."""
        with self.lock:
            if which is None and self.hidden:
                which = self.random("reveal").choice(self.hidden)
            if which is None:
                return
            self.hidden.remove(which)
            for key, _, after in which.writes:
                if after is None:
                    self.rows.pop(key, None)
                else:
                    self.rows[key] = PartRead(key, 0, dict(after), after["store"])

    def reveal_all(self) -> None:
        with self.lock:
            while self.hidden:
                self.reveal()

    # What the core reads ----------

    async def read(self, key: str) -> PartRead | None:
        await self.meanwhile("before read")
        with self.lock:
            found = self.rows.get(key)
        await self.meanwhile("after read")
        return found

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        return [row for key in keys if (row := await self.read(key)) is not None]

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        position = after or ""
        while True:
            await self.meanwhile("before page")
            with self.lock:
                found = sorted(key for key, row in self.rows.items() if key > position and row.group == group)
                rows = [self.rows[key] for key in found[: self.page]]
            await self.meanwhile("after page")
            if not rows:
                return
            position = rows[-1].key
            yield rows, position

    # What the reader asks of its server ----------

    def read_snapshot(self) -> VisibleTransactions:
        with self.lock:
            running = {each.xid for each in self.hidden}
            following = self._xid + 1
        return VisibleTransactions(min(running, default=following), following, frozenset(running))

    def sees(self, marks: set[Hashable]) -> bool:
        return PostgresCapture.sees(self, marks)  # type: ignore[arg-type]

    def describe_table(self, relation: int) -> PresentTable:
        return PresentTable(frozenset(COLUMNS))

    # What reads ask of the log ----------

    stall_seconds = 0.05
    flush_delay_seconds = 3600.0

    async def read_end(self) -> LogEnd:
        with self.lock:
            end = format_lsn(self.end)
        return LogEnd(end, end)

    def choose_earlier(self, one: str, other: str) -> str:
        return min(one, other, key=parse_lsn)


class ModelLog:
    """An open log of the model; it sends as many messages as it may at present."""

    def __init__(self, database: ModelDatabase, position: int) -> None:
        self.may_send = 0
        self._database = database
        self._sent_to = max(position, database.confirmed)
        self._ready: deque[PgMessage] = deque([_describe_table()])

    def get_loader(self, type_oid: int) -> Callable[[bytes], object]:
        return bytes.decode

    def receive(self, wait_seconds: float, wake: int | None = None) -> bytes | Keepalive | None:
        if self.may_send <= 0:
            return None
        self.may_send -= 1
        with self._database.lock:
            if not self._ready:
                for each in self._database.log:
                    if each.end > self._sent_to:
                        self._ready.extend(_describe_transaction(each))
                        self._sent_to = each.end
                        break
                else:
                    self._sent_to = max(self._sent_to, self._database.end)
                    return Keepalive(self._sent_to, False)
        message: bytes = self._ready.popleft()  # type: ignore[assignment]  # not encoded, and not decoded either
        return message

    def take_buffered(self) -> bytes | Keepalive | None:
        return None

    def acknowledge(self, position: int, *, wants_reply: bool = False) -> None:
        self._database.confirmed = max(self._database.confirmed, position)

    def hold(self, seconds: float) -> None:
        self._database.reveal()

    def close(self) -> None:
        return None


def _describe_table() -> Relation:
    columns = tuple(RelationColumn(name, TEXT_OID, name == "sku") for name in COLUMNS)
    return Relation(RELATION_OID, "public", "items", "d", columns)


def _describe_transaction(found: Transaction) -> Iterator[PgMessage]:
    yield TransactionBegin(found.lsn, found.committed_at, found.xid)
    for key, before, after in found.writes:
        if after is None:
            gone = (key.encode(), None, None, None)
            yield RowChange("delete", RELATION_OID, gone, False, None)
            continue
        is_kept = before is not None and before["big"] == after["big"]  # a large value that did not change
        values = tuple(UNCHANGED if name == "big" and is_kept else after[name].encode() for name in COLUMNS)
        yield RowChange("insert" if before is None else "update", RELATION_OID, None, False, values)
    yield TransactionEnd(found.lsn, found.end, found.committed_at)


class SilentListener:
    """Hears nothing: the histories tell the reader themselves that a read waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def numbered_config() -> Config:
    part = {
        "sql": {"table": "items"},
        "key": "sku",
        "group": "store",
        "version": {"kind": "log"},
        "changes": {"by": "log"},
    }
    calls = {name: {"method": "POST", "path": "/{{ id }}"} for name in ("update", "delete")}
    target = {
        "system": "erp",
        "key_field": "code",
        "create": {"method": "POST", "path": "/"},
        **calls,
        "read": {"path": "/{{ id }}"},
        "list": {"path": "/"},
    }
    entity = {
        "owner": "shop",
        "parts": {"shop": part},
        "mapping": {"code": "key", "store": "group", "name": "shop.name", "big": "shop.big"},
        "validation": {"deletions": {"min": 1000, "max": 1000}},
        "source_check": {"confirm_after": 0},
        "third_party": target,
    }
    return Config.model_validate(
        {
            "sources": {"shop": {"kind": "sql", "url": "postgresql+psycopg://127.0.0.1:1/shop", "capture": {}}},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1", "timeout": 5}},
            "entities": {"item": entity},
        }
    )


@dataclass
class NumberedWorld:
    """The model source, the reader of its log, and the archive in a real database."""

    engine: Engine
    random: Callable[[str], Random]
    config: Config = field(default_factory=numbered_config)
    clock_seconds: float = 0.0
    is_dead: bool = False
    is_stalled: bool = False
    deadly: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        event.listen(self.engine, "begin", self._set_clock)
        self.source = ModelDatabase(self.random)
        self.listener = SilentListener()
        self.recorder = ThreadPoolExecutor(1)
        self.reader: stream_module.OpenStream | None = None
        self.log: ModelLog | None = None
        self.query(f"TRUNCATE {', '.join('sync.' + name.strip() for name in TABLES.split(','))}")
        self.context = self.assemble()
        self.source.meanwhile = self.go_on_meanwhile
        self.depth = 0

    def assemble(self) -> Context:
        logs = {"item": {"shop": self.source}}
        return build_context(
            self.engine, self.config, {"item": {"shop": self.source}}, {"item": FakeThirdParty()}, logs=logs
        )

    @property
    def entity(self) -> EntityContext:
        return self.context.entities["item"]

    def _set_clock(self, connection: Any) -> None:
        if self.is_dead:
            raise Killed
        connection.exec_driver_sql(f"SET sync.clock_offset = '{self.clock_seconds} s'")

    def close(self) -> None:
        event.remove(self.engine, "begin", self._set_clock)
        self.recorder.shutdown()
        self.listener.close()

    def query(self, statement: str, **parameters: Any) -> Any:
        with self.engine.begin() as connection:
            return run(connection, statement, **parameters)

    # The reader ----------

    def open_reader(self) -> None:
        """A new process takes the stream over where the ledger has it."""
        tables = list_captured_tables(self.config, "shop")

        def begin(connection: Any) -> tuple[CaptureStream, int]:
            run(connection, "UPDATE sync.streams SET lease_until = NULL")
            token = streams.claim_stream(connection, "shop", 1e6)
            assert token is not None
            stream = streams.read_stream(connection, "shop")
            assert stream is not None
            if not stream.identity:
                position = format_lsn(self.source.end)
                numbered = numbered_entities(tables)
                known = {"items": f"{RELATION_OID}/1"}
                stream = CaptureStream("shop", "model", position, None, stream.number, known, numbered)
                streams.open_stream(connection, stream, token, entities_by_table=entities_by_table(tables))
            return stream, token

        stream, token = in_transaction(self.engine, begin)
        position = parse_lsn(stream.position)
        assert self.source.confirmed <= position, "the source was told of more than is recorded: changes are lost"
        at = StreamPosition("shop", token, 1e6, stream.position, stream.partial, "model")
        self.log = ModelLog(self.source, position)
        source: Any = self.source
        messages: Any = self.log
        changes = ChangeReader(tables, {"items": RELATION_OID}, self.log.get_loader, self.source.describe_table, 10**6)
        log = PostgresCaptureLog(source, messages, changes, stream.partial)
        self.reader = stream_module.OpenStream(
            self.engine, self.config, source, log, stream, at, tables, threading.Event()
        )

    def read_log(self, messages: int) -> None:
        """The reader receives some messages, and records what it has gathered."""
        with self.source.lock:
            if self.reader is None:
                self.open_reader()
            assert self.reader is not None
            assert self.log is not None
            self.log.may_send = messages
            self.reader._is_waited_for = True
            try:
                for _ in range(messages + 1):
                    self.reader._read_once(self.recorder, self.listener)  # type: ignore[arg-type]
                if self.reader._recording is not None:
                    wait([self.reader._recording.done])
            except ReaderKilled:
                self.reader = None

    def catch_up(self) -> None:
        self.source.reveal_all()
        for _ in range(100):
            self.read_log(50)
            [stream] = self.query("SELECT position FROM sync.streams")
            if parse_lsn(stream.position) >= self.source.end:
                return
        raise AssertionError("the reader does not arrive at the end of the log")

    # What happens beside a read ----------

    async def go_on_meanwhile(self, place: str) -> None:
        draw = self.random(place)
        if self.depth or draw.random() < 0.5:
            return
        self.depth += 1
        try:
            for what in draw.choices(["commit", "reveal", "read_log", "drain"], [3, 1, 3, 1], k=draw.choice([1, 2, 4])):
                if what == "drain":
                    await self.work_off()
                elif what == "read_log":
                    self.read_log(draw.randrange(1, 12))
                else:
                    getattr(self.source, what)()
        finally:
            self.depth -= 1

    def go_on_while_waiting(self) -> None:
        """A read waits for the stream: the log is read, unless nobody reads it now."""
        if not self.is_stalled:
            self.read_log(self.random("waiting").randrange(1, 12))

    async def work_off(self) -> None:
        """As a drain does, whose push half is left out."""
        await asyncio.to_thread(in_transaction, self.engine, release_expired_events)
        for _ in range(20):
            count, _ = await event_batch.work_off(self.context, self.random("batch").choice([1, 3, 100]), set())
            if not count:
                return

    # A process that does something, and may die ----------

    def run(self, work: Callable[[], Any]) -> bool:
        """Returns whether it died."""
        try:
            with suppress(CallFailed, DeletionsHeld, GroupBusy):
                asyncio.run(work())
        except BaseException as error:
            if not self.is_dead or not _was_killed(error):
                raise
        died, self.is_dead = self.is_dead, False
        if died:
            self.depth = 0
            self.clock_seconds += 120  # its leases end
            self.context = self.assemble()
        return died

    async def full_sync(self, group: str) -> None:
        await fill_archive(self.context, self.entity, group, allow_deletions=1000)
        await asyncio.to_thread(
            self.query, "UPDATE sync.groups SET first_completed_at = sync.clock(), completed_at = sync.clock()"
        )

    def crash(self, point: CrashPoint) -> None:
        if point.name not in self.deadly:
            return
        self.deadly[point.name] -= 1
        if self.deadly[point.name] > 0:
            return
        del self.deadly[point.name]
        if point.name in READER_POINTS:
            raise ReaderKilled
        self.is_dead = True
        raise Killed


def _was_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_was_killed(each) for each in error.exceptions)
    return isinstance(error, Killed)


@contextmanager
def modelled(worlds: list[NumberedWorld]) -> Iterator[None]:
    """Lets the reader and the holds work on the model of the last world."""

    def look(connection: Any, wanted: Any) -> Any:
        worlds[-1].go_on_while_waiting()
        return real_look(connection, wanted)

    real_look = holds._look_at_streams
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrashPoint, "__call__", lambda point: worlds[-1].crash(point))
        patch.setattr(postgres_log, "decode_message", lambda message: message)
        patch.setattr(stream_module, "_MEASURE_SECONDS", 1e9)
        patch.setattr(stream_module, "_WAIT_SECONDS", 0)
        patch.setattr(assembly, "PIECE_ROWS", 2)
        patch.setattr(holds, "_look_at_streams", look)
        patch.setattr(holds, "_FIRST_LOOK_SECONDS", 0.0)
        patch.setattr(holds, "_MAX_LOOK_SECONDS", 0.0)
        patch.setattr(event_batch, "_MAX_HOLD_SECONDS", 0.02)
        yield


class NumberedHistories(RuleBasedStateMachine):
    """One history; ``engine`` and ``number`` are set by the test."""

    engine: ClassVar[Engine]
    number: ClassVar[int] = 0
    worlds: ClassVar[list[NumberedWorld]] = []
    deaths: ClassVar[int] = 0
    merged: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.entropy = 0
        self.draws: dict[str, int] = defaultdict(int)
        self.reached: dict[str, int] = {}
        self.world = NumberedWorld(self.engine, self.random)
        self.worlds[:] = [self.world]
        for _ in range(4):  # what was there before the stream
            self.world.source.commit()
        self.world.source.reveal_all()
        self.world.read_log(1)
        for group in GROUPS:
            self.world.run(partial(self.world.full_sync, group))

    def random(self, place: str) -> Random:
        self.draws[place] += 1
        return Random(f"{self.number} {self.steps} {self.entropy} {place} {self.draws[place]}")

    @rule(entropy=st.integers(0, 2**64 - 1))
    def step(self, entropy: int) -> None:
        """One rule for all: the history's number is what tells histories apart."""
        self.steps, self.entropy = self.steps + 1, entropy
        (command,) = self.random("step").choices(list(COMMANDS), list(COMMANDS.values()))
        getattr(self, f"_{command}")()

    def _commit(self) -> None:
        self.world.source.commit()

    def _reveal(self) -> None:
        self.world.source.reveal()

    def _read_log(self) -> None:
        self.world.read_log(self.random("read_log").randrange(1, 20))

    def _drain(self) -> None:
        type(self).deaths += self.world.run(self.world.work_off)

    def _full_sync(self) -> None:
        group = self.random("group").choice(GROUPS)
        type(self).deaths += self.world.run(lambda: self.world.full_sync(group))

    def _check_source(self) -> None:
        """Nothing is lost here, so the check finds nothing, whatever is on its way."""
        group, found = self.random("group").choice(GROUPS), []

        async def check() -> None:
            found.append(await check_sources(self.world.context, self.world.entity, group, repair="off"))

        self.world.run(check)
        assert not [lost for result in found for lost in result.lost], "what is on its way was found to be lost"

    def _stall(self) -> None:
        self.world.is_stalled = not self.world.is_stalled

    def _reader_dies(self) -> None:
        draw = self.random("reader")
        self.world.deadly[draw.choice(READER_POINTS)] = draw.randrange(1, 3)

    def _work_dies(self) -> None:
        draw = self.random("work")
        self.world.deadly[draw.choice(WORK_POINTS)] = draw.randrange(1, 3)

    def _time_passes(self) -> None:
        self.world.clock_seconds += self.random("time").choice([2, 12, 70])

    @invariant()
    def no_part_steps_back(self) -> None:
        """Each archived state is one that its row had, and no earlier one than the archive had before."""
        for row in self.world.query("SELECT key, deleted, data FROM sync.parts"):
            history = self.world.source.history[row.key]
            at = self.reached.get(row.key, 0)
            state = None if row.deleted else dict(row.data)
            following = [place for place in range(at, len(history)) if history[place] == state]
            assert following, f"{row.key} has stepped back to {state}, behind {history[at]}"
            self.reached[row.key] = following[0]

    def teardown(self) -> None:
        """At the end the archive equals the source."""
        try:
            if self.steps:
                self._come_to_rest()
        finally:
            self.world.close()

    def _come_to_rest(self) -> None:
        world = self.world
        world.deadly.clear()
        world.is_stalled = False
        world.catch_up()
        for _ in range(12):
            world.clock_seconds += 70
            world.catch_up()
            world.run(world.work_off)
        world.catch_up()
        world.run(world.work_off)
        self.no_part_steps_back()
        rows = world.query(
            "SELECT p.key, p.data, r.group_key FROM sync.parts p JOIN sync.records r USING (entity, key) "
            "WHERE NOT p.deleted"
        )
        archived = {row.key: (row.group_key, dict(row.data)) for row in rows}
        assert archived == {key: (row["store"], row) for key, row in world.source.newest.items()}
        left = world.query("SELECT key, state, action, thin, error FROM sync.events WHERE revision IS NULL")
        assert not [row for row in left if row.state == "dead"], left
        type(self).merged += len(archived)


def replay(engine: Engine, number: int, steps: int) -> None:
    """A history without Hypothesis. Raises AssertionError where it breaks an invariant."""

    class Played(NumberedHistories):
        pass

    Played.engine, Played.number = engine, number
    history = Played()
    try:
        for _ in range(steps):
            history.step(0)
            history.no_part_steps_back()
    except BaseException:
        history.world.close()
        raise
    history.teardown()
