"""The composition root: puts configuration, database, adapters and the core together. Tests swap systems here.

Every command imports this module, and most of them need the database alone. What costs most of a command's start (the
models of the configuration, the adapters, the core, SQLAlchemy) is therefore imported by the functions that need it.
"""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sync_orchestrator.database import running_server
from sync_orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from collections import abc

    from sqlalchemy import Engine

    from sync_orchestrator.adapters.http.client import HttpClient
    from sync_orchestrator.config import Config, EntitySettings
    from sync_orchestrator.config.two_way import TwoWaySettings
    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.ports import SourceLog, SourceSystem, ThirdParty
    from sync_orchestrator.core.systems.call_limit import CallLimit
    from sync_orchestrator.core.two_way.rules import Side, TwoWay
    from sync_orchestrator.core.values.mapping import Mapping

MARK_FILE = "database-mark.json"
"""In ``SYNC_HOME``: how far the database was, outside of it."""


def resolve_home_folder() -> Path:
    """The folder of everything local: ``SYNC_HOME``, or ``.sync`` in the working directory."""
    return Path(os.environ.get("SYNC_HOME", ".sync")).resolve()


def config_path() -> Path:
    """``SYNC_CONFIG``, or ``sync.yaml`` in the working directory."""
    return Path(os.environ.get("SYNC_CONFIG", "sync.yaml")).resolve()


def load_config(path: Path | None = None) -> Config:
    """Loads the configuration and the classes that it names, whose modules may be beside it.

    Args:
        path: The file; by default that of ``config_path``.

    Raises:
        ConfigError: Something is wrong; the message lists all of it.
    """
    from sync_orchestrator import config as configuration
    from sync_orchestrator.adapters.custom.loading import wrong_classes
    from sync_orchestrator.config.required_extras import find_missing_extras

    path = path or config_path()
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)
    return configuration.load(path, lambda config: chain(find_missing_extras(config), wrong_classes(config)))


def database_place() -> str:
    """Which database is used, for people; without its password."""
    told = os.environ.get("SYNC_DATABASE_URL")
    if not told:
        return f"the embedded one in {resolve_home_folder() / 'postgres'}"
    scheme, rest = told.split("://", 1)
    login, at, place = rest.rpartition("@")
    user = login.partition(":")[0] + ":***" * (":" in login)
    return f"{scheme}://{user}{at}{place} (SYNC_DATABASE_URL)"


def require_database() -> None:
    """For commands that only make sense on a database that is there: nothing is made by looking.

    Raises ConfigError where there is none, naming those that may have been meant.
    """
    if os.environ.get("SYNC_DATABASE_URL") or running_server.has_database(resolve_home_folder() / "postgres"):
        return
    near = sorted(
        folder for folder in resolve_home_folder().glob("*/") if running_server.has_database(folder / "postgres")
    )
    hint = (
        " or ".join(f"export SYNC_HOME={shlex.quote(str(folder))}" for folder in near)
        or "go to the folder where it is, or name its home: export SYNC_HOME=FOLDER"
    )
    raise ConfigError(
        f"there is no database in {resolve_home_folder()}: {hint}; `sync-orchestrator up` makes a new one"
    )


def database_url(configured: str | None = None) -> str:
    """Returns the URL of the database, and starts the embedded server if that is used and not running.

    Args:
        configured: The URL; by default ``SYNC_DATABASE_URL``, or that of the embedded server.

    Raises:
        ConfigError: The URL cannot be one of Postgres.
    """
    from sqlalchemy import URL
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    told = configured or os.environ.get("SYNC_DATABASE_URL")
    if not told:
        from sync_orchestrator.database import embedded

        return embedded.start(resolve_home_folder() / "postgres")
    try:
        url = make_url(told)
    except ArgumentError:
        url = URL.create("")
    if not url.drivername.startswith("postgres"):
        raise ConfigError("SYNC_DATABASE_URL must be the URL of a Postgres database: postgresql://user@host/name")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def open_database(url: str | None = None) -> Engine:
    """An engine on a database of the present shape. Raises ConfigError for one behind a pooler in transaction mode."""
    from sync_orchestrator.core.db.connections import require_own_sessions
    from sync_orchestrator.core.db.session import open_engine
    from sync_orchestrator.database.migrate import migrate

    engine = open_engine(url or database_url())
    try:
        require_own_sessions(engine)
        migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_database_to_read() -> Engine:
    """A database that is only read; commands that look need no more, and start faster than with ``open_database``."""
    from sync_orchestrator.database.reading import login_of, open_for_reading

    url = os.environ.get("SYNC_DATABASE_URL")
    login = login_of(url) if url else running_server.find_login(resolve_home_folder() / "postgres")
    return (login and open_for_reading(login)) or open_database()


def check_database() -> str | None:
    """Looks at the database that SYNC_DATABASE_URL names, and writes nothing.

    Returns why it could not be looked at, or None. Raises ConfigError where it is of no use to us.
    """
    from sqlalchemy.exc import DBAPIError

    from sync_orchestrator.core.db.connections import require_own_sessions
    from sync_orchestrator.core.db.session import open_engine

    if not os.environ.get("SYNC_DATABASE_URL"):
        return None
    engine = open_engine(database_url())
    try:
        require_own_sessions(engine)
    except DBAPIError as error:
        return str(error.orig).splitlines()[0]
    finally:
        engine.dispose()
    return None


def open_context(engine: Engine | None = None, config: Config | None = None, *, only_look: bool = False) -> Context:
    """The whole system, ready to work. ``only_look``: a changed mapping puts no record out of sync yet.

    Raises ConfigError where ``sync.yaml`` or the environment is wrong.
    """
    from sync_orchestrator.adapters.factory import build_clients, build_sources, clients_of_routes, third_parties_behind
    from sync_orchestrator.core.systems.call_limit import SharedCallLimit
    from sync_orchestrator.core.systems.login_sessions import SharedLogins
    from sync_orchestrator.core.systems.rate_limit import SharedHoldOff, shared_rate

    config = config or load_config()
    engine = engine or open_database()
    rates = {
        name: shared_rate(engine, name, system.rate)
        for name, system in config.third_parties.items()
        if system.rate is not None
    }
    hold_offs = {name: SharedHoldOff(engine, name) for name in sorted({*config.sources, *config.third_parties})}
    logins = partial(SharedLogins, engine)
    limits: dict[str, CallLimit] = {
        name: SharedCallLimit(engine, name, system.concurrency, system.timeout)
        for name, system in config.third_parties.items()
    }
    clients = build_clients(config, rates, hold_offs, logins, limits)
    return build_context(
        engine,
        config,
        build_sources(config, logins, hold_offs, clients),
        third_parties_behind(config, clients),
        clients_of_routes(config, clients),
        only_look=only_look,
        mark_file=resolve_home_folder() / MARK_FILE,
        call_limits=limits,
    )


def build_context(
    engine: Engine,
    config: Config,
    sources: dict[str, dict[str, SourceSystem]],
    third_parties: dict[str, ThirdParty],
    clients: dict[str, HttpClient] | None = None,
    *,
    only_look: bool = False,
    mark_file: Path | None = None,
    call_limits: dict[str, CallLimit] | None = None,
    logs: abc.Mapping[str, abc.Mapping[str, SourceLog]] | None = None,
) -> Context:
    """Puts given systems together by entity, and registers them in the database.

    ``logs``: by entity and part, the sources' logs; by default those that the configuration describes.
    ``mark_file`` is kept outside of the database, so that a restore of it is noticed
    (``core/systems/installation.py``).
    """
    from sync_orchestrator.adapters.factory import build_logs
    from sync_orchestrator.core.context import Context
    from sync_orchestrator.core.operations.remap import remap
    from sync_orchestrator.core.systems.installation import InstallationWatch
    from sync_orchestrator.core.systems.overview import register_systems

    if logs is None:
        logs = build_logs(config)
    entities = {
        name: entity_context(
            name, config, checked_sources(engine, name, config, sources[name]), third_parties[name], logs[name]
        )
        for name in config.entities
    }
    installation = InstallationWatch(engine, list(config.third_parties), mark_file)
    context = Context(engine, config, entities, clients or {}, installation, call_limits=call_limits or {})
    with engine.begin() as connection:
        register_systems(connection, sorted({*config.sources, *config.third_parties}))
    if not only_look:
        installation.check_if_due()
        remap(context)
    return context


def checked_sources(
    engine: Engine, name: str, config: Config, sources: dict[str, SourceSystem]
) -> dict[str, SourceSystem]:
    """The source systems of an entity; parts that lost a field that the mapping reads cannot be used (rule 33).

    A source that is a third party, too, waits while the circuit breaker of that is open. Of a part with ``only_when``,
    other items are passed over.
    """
    from sync_orchestrator.config.sources import SharedSourceSettings
    from sync_orchestrator.core.archive.absent_fields import CheckedSource, mapped_fields
    from sync_orchestrator.core.archive.passed_over import SelectedSource
    from sync_orchestrator.core.systems.shared_system import SharedSystemSource

    entity = config.entities[name]
    fields = mapped_fields(entity.mapping)
    for part in entity.parts:
        if isinstance(shared := config.sources[part], SharedSourceSettings):
            breaker = config.third_parties[shared.same_as].breaker
            guarded = SharedSystemSource(sources[part], engine, shared.same_as, breaker.probe_cap)
            sources = {**sources, part: cast("SourceSystem", guarded)}
    for part, settings in entity.parts.items():
        if settings.only_when is not None:
            sources = {**sources, part: cast("SourceSystem", SelectedSource(sources[part], engine, name, part))}
    return {
        part: cast("SourceSystem", CheckedSource(source, engine, name, part, fields[part]))
        if part in fields and entity.parts[part].absent_fields == "refuse"
        else source
        for part, source in sources.items()
    }


def mapping_of(entity: EntitySettings) -> Mapping:
    """An entity's mapping, which compares what the third party gets."""
    from sync_orchestrator.adapters.rest.codecs import Codecs
    from sync_orchestrator.core.values.mapping import Mapping

    codecs = Codecs(entity.third_party.fields, tuple(entity.mapping))
    return Mapping(entity.mapping, entity.third_party.fields, as_sent=codecs.as_sent if codecs.change_values else None)


def entity_context(
    name: str,
    config: Config,
    sources: dict[str, SourceSystem],
    third_party: ThirdParty,
    logs: abc.Mapping[str, SourceLog],
) -> EntityContext:
    """One entity's rules and systems."""
    from sync_orchestrator.config.two_way import list_shared_fields
    from sync_orchestrator.core.context import EntityContext
    from sync_orchestrator.core.notifications.outcomes import OutcomeRouting
    from sync_orchestrator.core.version_guard import Rules
    from sync_orchestrator.expressions.mapping_columns import AGREED

    entity, two_way = config.entities[name], build_two_way(config, name)
    return EntityContext(
        name=name,
        settings=entity,
        retry=config.retry_of(name),
        rules=Rules(
            owner=entity.owner,
            required=_list_required_parts(entity) | ({AGREED} if two_way is not None else set()),
            on_missing=entity.on_missing,
            readable=frozenset(part for part, source in sources.items() if source.can_read),
            lag=entity.absent_after,
            numbered=frozenset(part for part, settings in entity.parts.items() if settings.version.is_numbered),
            is_two_way=two_way is not None,
        ),
        mapping=mapping_of(entity),
        sources=sources,
        third_party=third_party,
        system=config.third_parties[entity.third_party.system],
        outcomes=OutcomeRouting(name, entity.third_party.system, config.receivers_by_kind(name)),
        two_way=two_way,
        shared_fields=list_shared_fields(entity),
        logs=logs,
    )


def build_two_way(config: Config, name: str) -> TwoWay | None:
    """The rules by which an entity's records are linked and merged with those of another one; None where they are not.

    ``name``: either of the two entities.
    """
    from sync_orchestrator.core.two_way.rules import TwoWay
    from sync_orchestrator.core.two_way.three_way import Policy

    found = config.find_two_way(name)
    if found is None:
        return None
    ours, settings = found
    return TwoWay(
        ours=_build_side(config, ours, settings.back, settings, is_ours=True),
        theirs=_build_side(config, settings.back, ours, settings, is_ours=False),
        has_same_keys=settings.keys == "same",
        fields={field: Policy(shared.policy) for field, shared in settings.fields.items()},
        first=Policy(settings.first),
        skew=round(settings.skew * 1e6),
    )


def build_two_ways(config: Config) -> dict[str, TwoWay]:
    """The rules of all entities that have ``two_way``, by name."""
    names = [name for name, entity in config.entities.items() if entity.two_way is not None]
    return {name: two_way for name in names if (two_way := build_two_way(config, name)) is not None}


def _build_side(config: Config, name: str, other: str, settings: TwoWaySettings, *, is_ours: bool) -> Side:
    from sync_orchestrator.core.two_way.rules import Side
    from sync_orchestrator.core.values.mapping import Mapping

    entity, read_lag = config.entities[name], settings.read_lag
    # Records of this side live where the other entity writes.
    system = config.third_parties[config.entities[other].third_party.system]
    return Side(
        entity=name,
        owner=entity.owner,
        required=_list_required_parts(entity),
        shared=Mapping({field: each.ours if is_ours else each.theirs for field, each in settings.fields.items()}),
        match=Mapping({field: each.ours if is_ours else each.theirs for field, each in settings.match.items()}),
        mapping=mapping_of(entity),
        is_made_there=entity.third_party.creates == "allowed",
        has_times=entity.parts[entity.owner].version.kind == "time",
        read_lag=system.search_lag if read_lag is None else read_lag,
        deletes=settings.deletes.ours if is_ours else settings.deletes.theirs,
    )


def _list_required_parts(entity: EntitySettings) -> frozenset[str]:
    return frozenset(part for part, settings in entity.parts.items() if settings.required)
