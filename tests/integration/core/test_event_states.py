"""The moves of change events, as the database sees them, against the table in ``core/ledger/states.py``.

A scene for each move of the table: the move happens in it, and no other than the table's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
from fakes import answer
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from world import World

from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.ledger.states import FINISHED, MOVES, State
from sync_orchestrator.core.operations.events import discard_events, redrive_events
from sync_orchestrator.core.operations.records import refresh_record

Move = tuple[State, State]
Scene = Callable[[World], None]

PENDING, LEASED, WAITING, DEAD = State.PENDING, State.LEASED, State.WAITING, State.DEAD
DONE, SUPERSEDED, DISCARDED = State.DONE, State.SUPERSEDED, State.DISCARDED

ALL_MOVES = [(was, became) for was, following in MOVES.items() for became in sorted(following)]

# Rows: (seq, null, state) recorded; (seq, state, state) moved; (seq, state, null) left; (seq, null, state) in history.
WATCH = """
CREATE TABLE public.moves (place text NOT NULL, seq bigint NOT NULL, was text, became text);
CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.moves VALUES (
        TG_ARGV[0], coalesce(NEW.seq, OLD.seq),
        CASE WHEN TG_OP <> 'INSERT' THEN OLD.state END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.state END);
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE OF state OR DELETE ON sync.events
    FOR EACH ROW EXECUTE FUNCTION public.watch('active');
CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON sync.event_history
    FOR EACH ROW EXECUTE FUNCTION public.watch('history');
"""

BEGAN = "SELECT DISTINCT became FROM public.moves WHERE place = 'active' AND was IS NULL"

MOVED = """
SELECT was, became FROM public.moves WHERE place = 'active' AND was <> became
UNION
SELECT gone.was, kept.became
FROM (SELECT seq, was FROM public.moves WHERE place = 'active' AND became IS NULL) gone
FULL JOIN (SELECT seq, became FROM public.moves WHERE place = 'history') kept USING (seq)
"""

EMPTY = """
DO $$ BEGIN
    EXECUTE (SELECT 'TRUNCATE ' || string_agg(format('%%I.%%I', schemaname, tablename), ', ') FROM pg_tables
             WHERE schemaname IN ('sync', 'public') AND tablename <> 'alembic_version');
END $$
"""


@pytest.fixture(scope="module")
def engine(server_url: str, template: str) -> Iterator[Engine]:
    """One watched database for all scenes: to make one each would take longer than to play them."""
    name = f"states_{os.getpid()}"
    admin = open_engine(server_url).execution_options(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        run(connection, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    engine = open_engine(make_url(server_url).set(database=name).render_as_string(hide_password=False))
    with engine.begin() as connection:
        run(connection, WATCH)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        run(connection, f'DROP DATABASE "{name}" WITH (FORCE)')
    admin.dispose()


@pytest.fixture
def world(engine: Engine, make_world: Callable[..., World]) -> Iterator[World]:
    """An empty world whose owner counts its versions in microseconds since 1970, so that one can lie in the future."""
    with engine.begin() as connection:
        run(connection, EMPTY)
    part = {"key": "key", "list": {"path": "/"}}
    world = make_world(
        entity={
            "parts": {
                "shop": {**part, "version": {"path": "v", "kind": "time"}, "group": "store"},
                "stock": {**part, "version": {"path": "v", "kind": "number"}},
            }
        }
    )
    yield world
    world.close()


def moves_of(world: World, scene: Scene) -> set[Move]:
    """Plays a scene and returns every move that was made in it."""
    scene(world)
    assert [row.became for row in world.query(BEGAN)] == [PENDING]
    return {(State(row.was), State(row.became)) for row in world.query(MOVED)}


SCENES: list[tuple[Move, Scene]] = []


def shows(was: State, became: State) -> Callable[[Scene], Scene]:
    def add(scene: Scene) -> Scene:
        SCENES.append(((was, became), scene))
        return scene

    return add


def paused(world: World, yes: bool = True) -> None:
    world.query("UPDATE sync.systems SET paused = %(yes)s WHERE name = 'erp'", yes=yes)


def answers(world: World, status: int | None) -> None:
    world.erp.before = lambda verb, key: None if status is None else answer(status)


def archived_without_a_push(world: World) -> None:
    paused(world)
    world.put_record("a")
    world.run_drain()
    paused(world, False)


def refused(world: World) -> None:
    answers(world, 422)
    world.put_record("a")
    world.run_drain()
    answers(world, None)


def failed(world: World) -> None:
    answers(world, 503)
    world.put_record("a")
    world.run_drain()
    answers(world, None)


def told_of_without_a_source(world: World) -> None:
    """An event that carries only the key, while its source is down."""
    world.put_record("a", notify=False)
    world.shop.down = True
    world.post_event("shop", "a", "create", world.shop.rows["a"].version)
    world.run_drain()
    world.shop.down = False


@shows(PENDING, LEASED)
@shows(LEASED, DONE)
def a_change_is_mirrored(world: World) -> None:
    world.put_record("a")
    world.run_drain()


@shows(PENDING, SUPERSEDED)
def an_outdated_change_comes(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.post_event("shop", "a", "update", 1, {"name": "old", "store": "A"})
    world.run_drain()


@shows(LEASED, SUPERSEDED)
def its_source_has_no_such_record_and_a_newer_deletion_is_archived(world: World) -> None:
    world.post_event("shop", "a", "delete", 9)
    world.run_drain()
    world.post_event("shop", "a", "update", 1)
    world.run_drain()


@shows(PENDING, WAITING)
def an_update_comes_before_its_create(world: World) -> None:
    world.post_event("shop", "a", "update", 7, {"name": "n", "store": "A"})
    world.run_drain()


@shows(LEASED, WAITING)
def a_required_part_is_not_here(world: World) -> None:
    world.post_event("shop", "a", "create", 7, {"name": "n", "store": "A"})
    world.run_drain()


@shows(PENDING, WAITING)
def a_version_lies_in_the_future(world: World) -> None:
    year = 365 * 86_400 * 1_000_000
    [row] = world.query("SELECT (extract(epoch FROM sync.clock()) * 1e6)::bigint AS now")
    world.post_event("shop", "a", "create", row.now + year, {"name": "n", "store": "A"})
    world.run_drain()


@shows(LEASED, DEAD)
def a_change_is_refused(world: World) -> None:
    refused(world)


@shows(LEASED, DEAD)
def a_refused_change_comes_again(world: World) -> None:
    refused(world)
    row = world.shop.rows["a"]
    world.post_event("shop", "a", "update", row.version, row.data)
    world.run_drain()


@shows(LEASED, PENDING)
def a_drain_ends_before_the_push(world: World) -> None:
    archived_without_a_push(world)


@shows(LEASED, PENDING)
def a_drain_dies_after_it_has_archived(world: World) -> None:
    world.put_record("a")
    assert world.run_until_crash(world.run_drain, "events.merged", 1)
    world.advance_clock(world.config.limits.lease + 1)
    world.run_drain()


@shows(LEASED, PENDING)
def a_drain_dies_between_archive_and_push(world: World) -> None:
    world.put_record("a")
    asyncio.run(work_off(world.context, 10, set()))
    paused(world)
    world.advance_clock(world.config.limits.lease + 1)
    world.run_drain()


@shows(PENDING, DONE)
def a_push_is_made_up_for(world: World) -> None:
    archived_without_a_push(world)
    world.run_drain()


@shows(PENDING, WAITING)
def a_push_is_made_up_for_and_fails(world: World) -> None:
    archived_without_a_push(world)
    answers(world, 503)
    world.run_drain()


@shows(PENDING, DEAD)
def a_push_is_made_up_for_and_is_refused(world: World) -> None:
    archived_without_a_push(world)
    answers(world, 422)
    world.run_drain()


@shows(WAITING, LEASED)
def a_source_is_there_again(world: World) -> None:
    told_of_without_a_source(world)
    world.advance_clock(11)
    world.run_drain()


@shows(WAITING, PENDING)
def the_create_comes_after_its_update(world: World) -> None:
    an_update_comes_before_its_create(world)
    world.put_record("a")
    world.run_drain()


@shows(WAITING, PENDING)
def a_person_tries_again_what_waits(world: World) -> None:
    failed(world)
    redrive_events(world.engine)
    world.run_drain()


@shows(WAITING, PENDING)
def a_full_sync_compensates(world: World) -> None:
    world.put_record("a", notify=False)
    world.put_record("b", notify=False)
    world.post_event("shop", "gone", "update", 7, {"name": "n", "store": "A"}, group="A")
    world.run_drain()
    world.run_full_sync()
    world.run_drain()


@shows(WAITING, PENDING)
@shows(LEASED, WAITING)
def an_outage_opens_the_breaker(world: World) -> None:
    answers(world, 503)
    for number in range(12):
        world.put_record(f"k{number}")
    world.run_drain()
    answers(world, None)
    for _ in range(2):
        world.advance_clock(70)
        world.run_drain()


@shows(WAITING, DONE)
def a_failed_push_is_repeated(world: World) -> None:
    failed(world)
    world.advance_clock(11)
    world.run_drain()


@shows(WAITING, DONE)
def the_missing_part_comes(world: World) -> None:
    a_required_part_is_not_here(world)
    world.post_event("stock", "a", "create", 7, {"count": 1})
    world.run_drain()


@shows(WAITING, DEAD)
def a_push_fails_for_the_last_time(world: World) -> None:
    answers(world, 500)
    world.put_record("a")
    for wait in (11, 21, 41, 0):
        world.run_drain()
        world.advance_clock(wait)


@shows(WAITING, SUPERSEDED)
def a_newer_change_overtakes_one_that_waits(world: World) -> None:
    told_of_without_a_source(world)
    world.shop.down = True
    newer = world.shop.put("a", {"name": "newer", "store": "A"}, group="A")
    world.post_event("shop", "a", "create", newer.version, newer.data)
    world.run_drain()


@shows(WAITING, SUPERSEDED)
def a_person_has_the_record_of_a_future_version_reread(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    a_version_lies_in_the_future(world)
    asyncio.run(refresh_record(world.context, world.entity, "a"))


@shows(DEAD, PENDING)
def a_person_tries_again_what_is_dead(world: World) -> None:
    refused(world)
    redrive_events(world.engine)
    world.run_drain()


@shows(DEAD, DISCARDED)
def a_person_gives_up(world: World) -> None:
    refused(world)
    discard_events(world.engine, [row.seq for row in world.query("SELECT seq FROM sync.events")], "not wanted there")


@shows(DEAD, DONE)
def a_newer_change_of_a_refused_record_is_accepted(world: World) -> None:
    refused(world)
    world.put_record("a", name="better")
    world.run_drain()


@shows(DEAD, SUPERSEDED)
def a_newer_change_overtakes_one_that_is_dead(world: World) -> None:
    nowhere = world.shop.put("a", {"name": "belongs nowhere"})
    world.post_event("shop", "a", "create", nowhere.version, nowhere.data)
    world.run_drain()
    world.shop.rows.clear()
    world.put_record("a")
    world.run_drain()


def a_newer_change_of_a_refused_record_fails(world: World) -> None:
    refused(world)
    answers(world, 503)
    world.put_record("a", name="better")
    world.run_drain()


@pytest.mark.parametrize(
    ("move", "scene"), SCENES, ids=[f"{was}-{became}-{scene.__name__}" for (was, became), scene in SCENES]
)
def test_a_scene_makes_its_move_and_no_move_that_is_not_in_the_table(world: World, move: Move, scene: Scene) -> None:
    made = moves_of(world, scene)
    assert move in made
    assert made <= set(ALL_MOVES)
    assert world.read_conservation().balanced


@pytest.mark.parametrize("move", [pytest.param(move, id="-".join(move)) for move in ALL_MOVES])
def test_every_move_of_the_table_has_its_scene(move: Move) -> None:
    assert move in {shown for shown, _ in SCENES}


def test_a_dead_event_follows_its_record_only_by_moves_of_the_table(world: World) -> None:
    assert moves_of(world, a_newer_change_of_a_refused_record_fails) <= set(ALL_MOVES)


def test_what_is_finished_moves_no_more() -> None:
    assert all(not MOVES[state] for state in FINISHED)
    assert MOVES.keys() == set(State)
