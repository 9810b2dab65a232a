"""Sessions of our own database, on any Postgres: their settings, and those that live but are no good (rule 38)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from api_client import client_of, event, key_for, send, service
from busy_tables import EVENTS, HOT, RECORDS
from databases import create, drop
from fakes import two_part_config
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from typer.testing import CliRunner
from world import World

from sync_orchestrator.api.database import describe_failure
from sync_orchestrator.api.intake.group_commit import GroupCommit
from sync_orchestrator.cli import app
from sync_orchestrator.composition import open_database
from sync_orchestrator.core.db import connections, session_settings
from sync_orchestrator.core.db.session import force_index_scans, in_transaction, open_engine, run
from sync_orchestrator.core.drain import wakeup
from sync_orchestrator.core.drain.wakeup import is_due, listen_for_work, wait_for_work
from sync_orchestrator.core.ledger.recording import ChangeEvent, Recorded
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.database.embedded import pgurl_for_dagster
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.resources.instance import storage
from sync_orchestrator.resources.instance.config import DATABASE_VARIABLE, make_tables, write_instance

SHOWN = (
    "jit",
    "plan_cache_mode",
    "datestyle",
    "intervalstyle",
    "timezone",
    "extra_float_digits",
    "client_encoding",
    "default_transaction_isolation",
    "idle_in_transaction_session_timeout",
)
EXPECTED = ("off", "force_custom_plan", "ISO", "postgres", "UTC", "1", "UTF8", "read committed", "12s")
ODD = (
    "SET datestyle = 'German, DMY'",
    "SET intervalstyle = 'iso_8601'",
    "SET timezone = 'Asia/Kolkata'",
    "SET jit = on",
    "SET extra_float_digits = -3",
    "SET default_transaction_isolation = 'serializable'",
    "SET plan_cache_mode = 'auto'",
)


@pytest.fixture
def odd_url(database_url: str) -> Iterator[str]:
    """A database whose administrator has set all that a driver or a statement may stumble over."""
    name = make_url(database_url).database
    engine = open_engine(database_url)
    with engine.begin() as connection:
        for setting in ODD:
            run(connection, f'ALTER DATABASE "{name}" {setting}')
    engine.dispose()
    yield database_url
    engine = open_engine(database_url)
    with engine.begin() as connection:
        run(connection, f'ALTER DATABASE "{name}" RESET ALL')
    engine.dispose()


@pytest.fixture
def odd(odd_url: str) -> Iterator[Engine]:
    engine = open_engine(odd_url)
    yield engine
    engine.dispose()


def shown(execute: Any) -> tuple[str, ...]:
    found = tuple(str(execute(f"SHOW {name}")) for name in SHOWN)
    return (*found[:2], found[2].split(",")[0], *found[3:])


@pytest.fixture
def engine(fresh_engine: Engine) -> Engine:
    """Sessions that this test alone has: they are what is tested."""
    return fresh_engine


def settings_of(engine: Engine) -> tuple[str, ...]:
    with engine.connect() as connection:
        return shown(lambda statement: connection.exec_driver_sql(statement).scalar_one())


def with_options(url: str, options: str) -> str:
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


# Settings ---------------------------------------------------------------------------------------------------------


async def test_case_r08_every_kind_of_session_has_our_settings(odd: Engine, odd_url: str) -> None:
    assert settings_of(odd) == EXPECTED
    with wakeup._open_listener(odd) as listener:
        assert shown(lambda statement: listener.execute(statement).fetchone()[0]) == EXPECTED  # type: ignore[index]
    async with aclosing(GroupCommit(odd)) as commit:
        connection = await commit._open_connection()
        found = [str((await (await connection.execute(f"SHOW {name}")).fetchone())[0]) for name in SHOWN]  # type: ignore[index]
        await connection.close()
    assert (*found[:2], found[2].split(",")[0], *found[3:]) == EXPECTED
    kept = storage._create_engine(pgurl_for_dagster(odd_url))
    assert settings_of(kept) == EXPECTED
    kept.dispose()


def test_the_webservers_storage_has_our_settings_too(odd_url: str) -> None:
    kept = storage.KeptConnections(pgurl_for_dagster(odd_url), should_autocreate_tables=False)
    kept._run_storage.optimize_for_webserver(5000, 3600, 5)
    engine = kept._run_storage._engine
    assert settings_of(engine) == EXPECTED
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "5s"
    engine.dispose()


async def test_case_r08_events_pass_through_a_database_with_another_datestyle(odd: Engine) -> None:
    async with client_of(service(odd, two_part_config()), key_for(odd)) as client:
        assert (await send(client, event())).status_code == 202
        assert (await client.get("/readyz")).status_code == 200
    with odd.begin() as connection:
        received = run(connection, "SELECT received_at FROM sync.events")[0].received_at
    assert abs(received.timestamp() - time.time()) < 60


def test_what_the_url_says_is_kept(database_url: str) -> None:
    url = with_options(database_url, "-c work_mem=5MB -c jit=on") + "&connect_timeout=3&application_name=mine"
    known = connections.with_settings(url)
    assert connections.with_settings(known) == known
    assert (known.query["connect_timeout"], known.query["application_name"]) == ("3", "mine")
    engine = open_engine(url)
    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("work_mem", "jit", "plan_cache_mode", "application_name")
        ]
    assert found == ["5MB", "on", "force_custom_plan", "mine"]
    engine.dispose()


def test_several_hosts_mean_the_one_that_can_write() -> None:
    known = connections.with_settings("postgresql+psycopg://u@/d?host=a:5432&host=b:5433")
    assert known.query["target_session_attrs"] == "read-write"
    assert connections.build_arguments(known)["host"] == "a,b"
    assert "target_session_attrs" not in connections.with_settings("postgresql+psycopg://u@a/d").query


def test_a_machine_without_power_is_noticed_at_both_ends() -> None:
    known = connections.with_settings("postgresql+psycopg://u@a/d").query
    kept = {name: int(str(known[f"keepalives_{name}"])) for name in ("idle", "interval", "count")}
    assert kept["idle"] + kept["interval"] * kept["count"] <= 15
    assert int(str(known["tcp_user_timeout"])) + 1000 * kept["idle"] <= 15_000
    for name in ("tcp_keepalives_idle=5", "tcp_user_timeout=10000", "idle_in_transaction_session_timeout=12000"):
        assert f"-c {name}" in known["options"]


def test_pg_stat_activity_says_which_process_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, name in (
        (["/x/sync_orchestrator/__main__.py", "api", "--port", "1"], "sync-orchestrator api"),
        (["/bin/sync-orchestrator", "full-sync", "product"], "sync-orchestrator full-sync product"),
        (["/bin/dagster-daemon", "run"], "sync-orchestrator dagster-daemon run"),
    ):
        monkeypatch.setattr(sys, "argv", words)
        assert session_settings.application_name() == f"{name} {os.getpid()}"


def test_a_transaction_left_open_by_a_process_that_hangs_is_ended(database_url: str, engine: Engine) -> None:
    hanging = open_engine(with_options(database_url, "-c idle_in_transaction_session_timeout=300"))
    with hanging.connect() as held:
        run(held, "LOCK TABLE sync.event_ids")
        with engine.begin() as connection:
            run(connection, "SET LOCAL lock_timeout = '10s'")
            run(connection, "LOCK TABLE sync.event_ids")
        with pytest.raises(DBAPIError):
            run(held, "SELECT 1")
    hanging.dispose()


def test_a_streamed_result_may_take_its_time(engine: Engine) -> None:
    from sync_orchestrator.core.db.session import stream_rows

    with engine.begin() as connection:
        assert list(stream_rows(connection, "SELECT 1")) == [[(1,)]]
        assert run(connection, "SHOW idle_in_transaction_session_timeout")[0][0] == "1h"


# JIT --------------------------------------------------------------------------------------------------------------


def test_no_statement_of_ours_is_compiled(world: World) -> None:
    """Switching plan types off costs 1e10 before Postgres 18, which would send every claim through LLVM."""
    with world.engine.begin() as connection:
        run(connection, RECORDS)
        run(connection, EVENTS)
    for name, (statement, params) in HOT.items():
        with world.engine.connect() as connection:
            assert run(connection, "SHOW jit")[0][0] == "off"
            force_index_scans(connection, in_order="claim" in name)
            plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN (ANALYZE) {statement}", **params))
            connection.rollback()
        assert "Execution Time" in plan
        assert "JIT" not in plan, f"{name}: {plan}"


# Listening --------------------------------------------------------------------------------------------------------

SYSTEMS = {"item": "erp"}


def test_listening_works_with_options_in_the_url(database_url: str) -> None:
    engine = open_engine(with_options(database_url, "-c work_mem=5MB"))
    assert wait_for_work(engine, SYSTEMS, 0.0) is False
    engine.dispose()


async def test_a_listener_whose_session_ended_listens_again(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "_RECONNECT_SECONDS", 0.05)
    woken = asyncio.Event()
    async with listen_for_work(engine, woken.set):
        for _ in range(2):
            await notified(engine, woken)
            await asyncio.to_thread(end_sessions, engine)


async def notified(engine: Engine, woken: asyncio.Event) -> None:
    woken.clear()
    async with asyncio.timeout(20):
        while not woken.is_set():
            await asyncio.to_thread(notify, engine)
            await asyncio.sleep(0.05)


def notify(engine: Engine) -> None:
    with engine.begin() as connection:
        run(connection, f"NOTIFY {wakeup.CHANNEL}")


def test_waiting_for_work_outlives_its_session(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def looked(*arguments: Any) -> bool:
        nonlocal looks
        looks += 1
        end_sessions(engine)
        return looks == 3

    monkeypatch.setattr(wakeup, "is_due", looked)
    assert wait_for_work(engine, SYSTEMS, 10)


def end_sessions(engine: Engine) -> None:
    with engine.begin() as connection:
        run(
            connection,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )


# Sessions that live but are no good -------------------------------------------------------------------------------


def set_read_only(engine: Engine, *, on: bool) -> None:
    """As a failover leaves it: the sessions that are open are not ended where it becomes writable again."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(
            f'ALTER DATABASE "{name}" '
            + ("SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only")
        )


@pytest.fixture
def operator(database_url: str) -> Iterator[Engine]:
    """Sessions of somebody else, which may write whatever the database's default."""
    url = with_options(database_url, "-c default_transaction_read_only=off")
    engine = open_engine(url)
    yield engine
    set_read_only(engine, on=False)
    engine.dispose()


async def test_case_r22_a_database_that_was_read_only_for_a_moment(world: World, operator: Engine) -> None:
    """During: 503 and a red /readyz. After: 202 within seconds, and a drain on the same engine works."""
    world.put_record("k1", notify=False)
    async with client_of(service(world.engine, world.config), key_for(world.engine)) as client:
        assert (await send(client, event())).status_code == 202
        set_read_only(operator, on=True)
        end_sessions(operator)
        for number in range(30):
            answer = await send(client, event(id=f"during {number}"))
            assert (answer.status_code, answer.json()["detail"]) == (
                503,
                "The database is read-only; try again later.",
            ), answer.text
        await asyncio.sleep(1.1)  # the last look at readiness is over
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "The database is read-only; try again later.")
        with pytest.raises(DBAPIError):
            await asyncio.to_thread(world.post_event, "shop", "k2", "update", 1)
        set_read_only(operator, on=False)
        await asyncio.sleep(1.1)
        for number in range(20):
            assert (await send(client, event(id=f"after {number}"))).status_code == 202
        assert (await client.get("/readyz")).status_code == 200
    await asyncio.to_thread(world.run_drain)
    assert await asyncio.to_thread(is_due, world.engine, SYSTEMS) is False


@pytest.mark.parametrize("reported", [True, False])
def test_case_r22_the_engine_writes_again_without_being_told(
    engine: Engine, operator: Engine, monkeypatch: pytest.MonkeyPatch, reported: bool
) -> None:
    """Also where the server (before 14) does not report that its sessions are read-only."""
    if not reported:
        monkeypatch.setattr(connections, "reports_read_only", lambda driver: False)
    set_read_only(operator, on=True)
    end_sessions(operator)
    for _ in range(2):
        with engine.connect() as one, engine.connect() as two:
            run(one, "SELECT 1")
            run(two, "SELECT 1")
    set_read_only(operator, on=False)
    write(engine)


def write(engine: Engine) -> None:
    in_transaction(
        engine,
        lambda connection: run(connection, "INSERT INTO sync.heartbeats (name) VALUES ('t') ON CONFLICT DO NOTHING"),
    )


@pytest.mark.parametrize(
    "spoil",
    ["DEALLOCATE ALL", "ALTER TABLE public.t ALTER COLUMN a TYPE bigint", "SET default_transaction_read_only = on"],
)
def test_a_transaction_that_fails_for_its_session_is_done_in_a_fresh_one(engine: Engine, spoil: str) -> None:
    """26000, 0A000 and 25006: the statement is right, the session is not."""

    def work(connection: Any) -> int:
        driver = connection.connection.driver_connection
        driver.execute("INSERT INTO public.t VALUES (1)", prepare=True)
        return driver.execute("SELECT * FROM public.t", prepare=True).rowcount  # type: ignore[no-any-return]

    with engine.begin() as connection:
        run(connection, "CREATE TABLE public.t (a integer)")
    assert in_transaction(engine, work) == 1
    with engine.begin() as connection:
        connection.exec_driver_sql(spoil)
    assert in_transaction(engine, work) == 2


def test_a_session_that_is_ended_under_its_transaction_is_replaced(engine: Engine, operator: Engine) -> None:
    attempts = []

    def work(connection: Any) -> None:
        run(connection, "INSERT INTO sync.heartbeats (name) VALUES ('once')")
        attempts.append(run(connection, "SELECT pg_backend_pid()")[0][0])
        if len(attempts) == 1:
            end_sessions(operator)
        run(connection, "SELECT 1")

    in_transaction(engine, work)
    assert len(set(attempts)) == 2


def test_what_may_have_been_committed_is_not_done_again(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION public.ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        connection.exec_driver_sql("CREATE TABLE public.t (a integer)")
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER ends AFTER INSERT ON public.t DEFERRABLE INITIALLY "
            "DEFERRED FOR EACH ROW EXECUTE FUNCTION public.ends()"
        )
    attempts = []

    def work(connection: Any) -> None:
        attempts.append(1)
        run(connection, "INSERT INTO public.t VALUES (1)")

    with pytest.raises(OperationalError):
        in_transaction(engine, work)
    assert len(attempts) == 1
    write(engine)


def changes(ident: str) -> list[ChangeEvent]:
    return [ChangeEvent("shop", ident, "item", ident, "update", 1, {"a": 1})]


@pytest.mark.parametrize("spoil", ["DEALLOCATE ALL", "SET default_transaction_read_only = on"])
async def test_the_group_commit_replaces_a_session_that_is_no_good(engine: Engine, spoil: str) -> None:
    async with aclosing(GroupCommit(engine)) as commit:
        await commit.record_events(changes("a"))
        for connection in commit._idle:
            await connection.execute(spoil)
        assert await commit.record_events(changes("b")) == Recorded(1, 0)


async def test_a_database_that_is_down_is_tried_once_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    tries = []

    async def refused(*arguments: Any, **named: Any) -> None:
        tries.append(1)
        raise psycopg.OperationalError("refused")

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", refused)
    async with aclosing(GroupCommit(engine)) as commit:
        with pytest.raises(psycopg.OperationalError):
            await commit.record_events(changes("a"))
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (psycopg.errors.ReadOnlySqlTransaction("x"), "The database is read-only; try again later."),
        (
            psycopg.errors.CannotConnectNow("x"),
            "The database is starting, shutting down or overloaded; try again later.",
        ),
        (psycopg.errors.DiskFull("x"), "The database has no room left (disk, memory or connections); try again later."),
        (psycopg.errors.InvalidPassword("x"), "The database refuses the service's login; try again later."),
        (
            psycopg.errors.InsufficientPrivilege("x"),
            "The database does not permit what the service has to do; try again later.",
        ),
        (psycopg.OperationalError("x"), "The database does not answer; try again later."),
        (TimeoutError(), "The database does not answer; try again later."),
        (psycopg.errors.UndefinedTable("x"), "The database failed; try again later."),
    ],
)
def test_an_error_of_the_database_is_named_by_what_it_is(state: Exception, said: str) -> None:
    assert describe_failure(state) == said


# Readiness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        "REVOKE ALL ON sync.events FROM CURRENT_USER; ALTER TABLE sync.events DISABLE TRIGGER ALL; "
        "ALTER TABLE sync.events ADD CONSTRAINT none CHECK (false) NOT VALID",
        "ALTER TABLE sync.heartbeats ADD CONSTRAINT none CHECK (name <> 'probe api') NOT VALID",
    ],
)
async def test_rule_38_readiness_tries_to_record(engine: Engine, broken: str) -> None:
    async with client_of(service(engine, two_part_config()), None) as client:
        with engine.begin() as connection:
            connection.exec_driver_sql(broken)
        assert (await client.get("/readyz")).status_code == 503


async def test_readiness_leaves_nothing_behind_but_a_heartbeat(engine: Engine) -> None:
    async with client_of(service(engine, two_part_config()), None) as client:
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    with engine.begin() as connection:
        left = [
            run(connection, f"SELECT count(*) FROM sync.{table}")[0][0] for table in ("events", "event_ids", "tallies")
        ]
        beats = [row.name for row in run(connection, "SELECT name FROM sync.heartbeats")]
    assert (left, beats) == ([0, 0, 0], ["probe api"])


async def test_readiness_does_not_wait_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sync_orchestrator.api import health

    monkeypatch.setattr(health, "READY_SECONDS", 0.2)
    async with client_of(service(engine, two_part_config()), None) as client:
        with engine.begin() as connection:
            run(connection, "LOCK TABLE sync.heartbeats")
            started = time.monotonic()
            assert (await client.get("/readyz")).status_code == 503
            assert time.monotonic() - started < 2


# Dagster's storage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dagster_url(server_url: str) -> Iterator[str]:
    url = create(server_url, f"sessions_{os.getpid()}")
    yield url
    drop(server_url, url)


def test_case_r22_dagsters_storage_writes_again(
    dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, pgurl_for_dagster(dagster_url))
    operator = open_engine(with_options(dagster_url, "-c default_transaction_read_only=off"))
    write_instance(tmp_path)
    make_tables()
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.add_dynamic_partitions("group", ["before"])
        set_read_only(operator, on=True)
        end_sessions(operator)
        for _ in range(3):
            with pytest.raises(DBAPIError):
                instance.add_dynamic_partitions("group", ["during"])
        set_read_only(operator, on=False)
        instance.add_dynamic_partitions("group", ["after"])
        assert set(instance.get_dynamic_partitions("group")) == {"before", "after"}
    storage.engine_of(pgurl_for_dagster(dagster_url)).dispose()
    operator.dispose()


# Poolers ----------------------------------------------------------------------------------------------------------


class PgBouncer:
    """A pooler before the tests' server."""

    def __init__(self, folder: Path, server_url: str, **settings: str) -> None:
        to = make_url(server_url)
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        place = f"host={to.query.get('host') or to.host} user={to.username}" + (f" port={to.port}" if to.port else "")
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "auth_type": "any",
            "unix_socket_dir": "",
            "default_pool_size": "5",
            **settings,
        }
        file = folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = {place}\n[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        folder.chmod(0o755)
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [shutil.which("pgbouncer") or "", *_as_another_user(to), str(file)], stdout=self.log, stderr=self.log
        )
        ends = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < ends, (folder / "log").read_text()
                time.sleep(0.02)

    def url_of(self, database_url: str) -> str:
        database = make_url(database_url).database
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


def _as_another_user(server: URL) -> list[str]:
    """PgBouncer does not run as root; whoever owns the server's socket may use it."""
    if os.geteuid() != 0:
        return []
    place = str(server.query.get("host", ""))
    return ["-u", Path(place).owner() if place.startswith("/") else "nobody"]


@pytest.fixture
def bouncer(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Any]:
    """Makes poolers; skipped where PgBouncer is not installed."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("pgbouncer is not installed")
    made: list[PgBouncer] = []

    def make(**settings: str) -> PgBouncer:
        folder = Path("/tmp") / f"sync-bouncer-{os.getpid()}-{len(made)}"  # other users cannot enter pytest's folder
        folder.mkdir()
        made.append(PgBouncer(folder, server_url, **settings))
        return made[-1]

    yield make
    for number, each in enumerate(made):
        each.stop()
        shutil.rmtree(Path("/tmp") / f"sync-bouncer-{os.getpid()}-{number}")


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_mode": "transaction"},
        {"pool_mode": "transaction", "ignore_startup_parameters": "options"},
        {"pool_mode": "transaction", "ignore_startup_parameters": "options", "server_round_robin": "1"},
        {"pool_mode": "statement", "ignore_startup_parameters": "options"},
        {"pool_mode": "session"},
    ],
    ids=str,
)
async def test_case_r23_a_pooler_without_sessions_is_refused_in_one_sentence(
    bouncer: Any,
    engine: Engine,
    database_url: str,
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the start of anything, by ``check``, and by ``/readyz``."""
    url = bouncer(**settings).url_of(database_url)
    with pytest.raises(ConfigError, match="set SYNC_DATABASE_URL to the Postgres server itself"):
        open_database(url)
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(two_part_config().model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    monkeypatch.setenv("SYNC_DATABASE_URL", url)
    for command in ("check", "status"):
        found = await asyncio.to_thread(CliRunner().invoke, app, [command])
        assert (found.exit_code, "pool_mode = session" in found.output) == (2, True), found.output
    pooled = open_engine(url)
    async with client_of(service(pooled, two_part_config()), None) as client:
        assert (await client.get("/readyz")).status_code == 503
    pooled.dispose()


async def test_case_r23_a_pooler_in_session_mode_works(bouncer: Any, database_url: str) -> None:
    """The settings that it does not pass on are set by statement."""
    url = bouncer(pool_mode="session", ignore_startup_parameters="options", default_pool_size="20").url_of(database_url)
    engine = open_database(url)
    assert settings_of(engine) == EXPECTED
    async with client_of(service(engine, two_part_config()), key_for(engine)) as client:
        assert (await client.get("/readyz")).status_code == 200
        for number in range(20):
            assert (await send(client, event(id=f"e{number}"))).status_code == 202
    assert wait_for_work(engine, SYSTEMS, 5)
    engine.dispose()


def test_check_says_that_a_database_was_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(two_part_config().model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    monkeypatch.setenv("SYNC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    found = CliRunner().invoke(app, ["check"])
    assert found.exit_code == 0
    assert "the database was not checked" in found.output


def test_a_month_made_in_another_time_zone_does_not_keep_a_start_from_working(engine: Engine) -> None:
    from sync_orchestrator.database.migrate import migrate

    with engine.begin() as connection:
        run(connection, "SELECT 1")
        month = run(connection, "SELECT date_trunc('month', now() + interval '2 months')::date AS m")[0].m
        name = f"sync.event_history_{month:%Y_%m}"
        before = (month.replace(day=1)).isoformat()
        run(connection, f"DROP TABLE {name}")
        run(
            connection,
            f"CREATE TABLE sync.odd_month PARTITION OF sync.event_history FOR VALUES "
            f"FROM ('{before} 00:00+00') TO ('{before} 05:00+00')",
        )
    migrate(engine)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one() is None


def test_the_statements_of_pushing_know_no_locale(odd: Engine) -> None:
    """A statement that compares times as text would fail here."""
    with odd.begin() as connection:
        assert run(connection, systems_queries.REGISTER_SYSTEM, name="erp") == ()
