"""Values of the environment are secrets: they are in no error, table, alert, outcome, log line or lookup."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import traceback
from typing import Any
from urllib.parse import quote

import pytest
from api_client import client_of, key_for, service
from http_server import Server
from record_store import HttpWorld
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from world import World

from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.brokers.receivers import build_receivers
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.config.environment import filled_in
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.notifications.outcomes import send_due_outcomes
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import CallFailed, ConfigError, Failure, InvalidEvent
from sync_orchestrator.texts.masking import mask_all, mask_log_records, mask_secrets

CANARY = "c4n4ry"
PLACES = [
    "header",
    "token",
    "path",
    "param",
    "call_header",
    "body",
    "group_param",
    "lookup",
    "reference",
    "mapped",
    "outcome_header",
    "outcome_path",
    "source_header",
    "source_path",
    "source_param",
    "user",
    "password",
]
ECHOES = ["text", "json", "html", "quoted", "repr", "base64"]


def canary(place: str) -> str:
    """With signs that are spelled in other ways in JSON, HTML and addresses."""
    return f"{CANARY}-{place}&\"<'>%/" if place not in ("token", "user") else f"{CANARY}-{place}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in PLACES:
        monkeypatch.setenv(f"CANARY_{place.upper()}", canary(place))


def named(place: str) -> str:
    return f"${{CANARY_{place.upper()}}}"


def document(server: Server) -> dict[str, Any]:
    """A secret wherever a template or a text can be."""
    part = {
        "key": "key",
        "version": {"path": "v", "kind": "number"},
        "list": {"path": f"/rows/{named('source_path')}", "params": {"t": named("source_param")}},
        "read": {"path": f"/row/{named('source_path')}/{{{{ key }}}}"},
    }
    headers = {"X-Shop": named("call_header")}
    return {
        "sources": {
            "shop": {
                "base_url": f"{server.url}/shop",
                "headers": {"X-Key": named("source_header")},
                "auth": {"kind": "basic", "user": named("user"), "password": named("password")},
            }
        },
        "third_parties": {
            "erp": {
                "base_url": f"{server.url}/erp",
                "headers": {"X-Api-Key": named("header")},
                "auth": {"kind": "bearer", "token": named("token")},
                "timeout": 5,
                "search_lag": 0,
            }
        },
        "entities": {
            "item": {
                "owner": "shop",
                "parts": {"shop": {**part, "group": "store"}},
                "mapping": {"code": "key", "store": "group", "name": "shop.name", "tenant": "'plain'"},
                "retry": {"retries": 0, "first_wait": 1, "jitter": 0},
                "third_party": {
                    "system": "erp",
                    "key_field": "code",
                    "create": {
                        "path": f"/items/{named('path')}",
                        "params": {"p": named("param")},
                        "headers": headers,
                        "body": {"secret": named("body"), "fields": "{{ payload }}"},
                    },
                    "update": {"method": "PUT", "path": "/items/{{ id }}", "body": {"secret": named("body")}},
                    "delete": {"path": f"/items/{named('path')}/{{{{ id }}}}", "headers": headers},
                    "read": {"path": "/items/{{ id }}", "params": {"p": named("param")}},
                    "lookup": {"path": "/items", "params": {"code": "{{ key }}", "s": named("lookup")}},
                    "list": {"path": "/items", "params": {"store": "{{ group }}", "s": named("group_param")}},
                },
            }
        },
        "outcomes": {
            "audit": {
                "url": f"{server.url}/hook/{named('outcome_path')}",
                "headers": {"X-Key": named("outcome_header")},
            }
        },
        "alerts": {"group_wait": 0},
    }


class Echo:
    """Systems with one record that refuse every call from some time on and show all of it, as careless ones do."""

    def __init__(self, how: str, server: Server) -> None:
        self.how = how
        self.refuses = ""
        self.refused: set[str] = set()
        self.hooks: list[str] = []
        server.handler = self.handle

    async def handle(self, request: Request) -> Response:
        body = (await request.body()).decode()
        if request.url.path.startswith("/hook"):
            self.hooks.append(body)
            return Response()
        if self.refuses != "all" and not (self.refuses and request.method != "GET"):
            return self.well(request)
        self.refused.add(f"{request.method} {request.url.path.split('/')[1:3]}")
        texts = [
            request.scope["raw_path"].decode(),
            request.url.path,
            str(request.url.query),
            *request.query_params.values(),
            *request.headers.values(),
            body,
        ]
        if body.startswith("{"):
            texts.append(json.loads(body).get("secret", ""))
        match self.how:
            case "json":
                return Response(json.dumps({"error": texts}), 400, media_type="application/json")
            case "html":
                return Response(f"<!doctype html><p>{html.escape(' '.join(texts))}</p>", 400, media_type="text/html")
            case "quoted":
                return Response(quote(" ".join(texts)), 400)
            case "repr":
                return Response(repr(texts), 400)
            case "base64":
                return Response(" ".join(base64.b64encode(text.encode()).decode() for text in texts), 400)
        return Response(" ".join(texts), 400)

    def well(self, request: Request) -> Response:
        item = {"id": "x1", "code": "k0", "store": "A", "name": "n", "tenant": "plain"}
        row = {"key": "k0", "name": "n", "store": "A", "v": 1}
        one = request.method == "POST" or request.url.path.endswith(("/x1", "/k0"))
        found = row if request.url.path.startswith("/shop") else item
        return JSONResponse(found if one else [found])


def assert_clean(text: str) -> None:
    assert CANARY not in text
    for place in PLACES:
        assert base64.b64encode(canary(place).encode()).decode() not in text


def stored(world: World) -> str:
    """Every row of every table."""
    tables = world.query("SELECT tablename FROM pg_tables WHERE schemaname = 'sync'")
    assert len(tables) > 20
    return "\n".join(str(row[0]) for table in tables for row in world.query(f"SELECT t::text FROM sync.{table[0]} t"))


class EchoWorld(HttpWorld):
    """Sources and third party over HTTP."""

    def assemble_context(self) -> Context:
        self.made = build_context(
            self.engine, self.config, build_sources(self.config), build_third_parties(self.config, {})
        )
        return self.made


@pytest.mark.parametrize("how", ECHOES)
def test_no_secret_of_the_environment_is_stored_sent_or_shown(
    engine: Engine, server: Server, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    mask_log_records()
    caplog.set_level(logging.DEBUG)
    echo = Echo(how, server)
    raw = document(server)
    world = EchoWorld(engine, Config.model_validate(filled_in(raw)))
    world.run_full_sync()
    assert world.read_record_row("k0").external_id == "x1"
    echo.refuses = "writes"
    world.post_event("shop", "k1", "create", 1, {"key": "k1", "name": "n", "store": "A", "v": 1}, group="A")
    world.post_event("shop", "k2", "create", 1, group="A")  # without data: it is read at its source
    world.post_event("shop", "k0", "update", 2, {"key": "k0", "name": "new", "store": "A", "v": 2}, group="A")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(100)
    world.post_event("shop", "k0", "delete", 3)
    world.run_drain()
    echo.refuses = "all"
    world.post_event("shop", "k3", "create", 1, group="A")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(100)
    shown = []
    for work in (
        lambda: world.run_full_sync(),
        lambda: world.run_validation(full=True),
        lambda: perform(world.context, check_sources(world.context, world.entity, "A")),
    ):
        try:
            shown.append(repr(work()))
        except Exception as error:
            shown += [repr(error), *traceback.format_exception_only(error)]
    assert echo.refused >= {
        "POST ['erp', 'items']",
        "PUT ['erp', 'items']",
        "DELETE ['erp', 'items']",
        "GET ['erp', 'items']",
        "GET ['shop', 'row']",
        "GET ['shop', 'rows']",
    }
    send_due_outcomes(engine, build_receivers(world.config), world.config.alerts)
    alerts.send_due_alerts(engine, world.config.alerts)
    with engine.begin() as connection:
        shown += [str(records.read_biography(connection, "item", key)) for key in ("k1", "k2")]
    for scope in ("events:shop", "admin"):
        shown += lookups(world, scope)
    assert world.query("SELECT FROM sync.alerts")
    assert echo.hooks
    for text in (*shown, *echo.hooks, stored(world), caplog.text):
        assert_clean(text)
    assert "answer 400" in stored(world)
    world.close()


def lookups(world: World, scope: str) -> list[str]:
    async def fetched() -> list[str]:
        async with client_of(service(world.engine, world.config), key_for(world.engine, scope)) as client:
            return [(await client.get(path)).text for path in ("/v1/records/item/k1", "/v1/events/e1", "/v1/events/e2")]

    return asyncio.run(fetched())


def test_only_admin_reads_the_text_of_an_error(engine: Engine, server: Server) -> None:
    Echo("text", server).refuses = "all"
    world = EchoWorld(engine, Config.model_validate(filled_in(document(server))))
    world.post_event("shop", "k1", "create", 1, {"key": "k1", "name": "n", "store": "A", "v": 1}, group="A")
    world.run_drain()
    for text in lookups(world, "events:shop")[:2]:
        assert '"answer 400"' in text
        assert "answer 400: " not in text
    assert any("answer 400: " in text for text in lookups(world, "admin"))
    world.close()


# The mechanism ------------------------------------------------------------------------------------------------------


def use(*places: str) -> None:
    filled_in([named(place) for place in places])


@pytest.mark.parametrize(
    "error",
    [CallFailed(Failure.PERMANENT, "x"), ConfigError("x"), InvalidEvent("x", "field")],
    ids=["call", "config", "event"],
)
def test_every_error_of_ours_is_masked(error: Exception) -> None:
    use("path")
    text = f"before {canary('path')} after"
    made = type(error)(Failure.PERMANENT, text) if isinstance(error, CallFailed) else type(error)(text)
    assert str(made) == "before *** after"


def test_a_log_line_and_its_traceback_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    use("path")
    mask_log_records()
    log = logging.getLogger("some.library")
    log.warning("asked for %s", canary("path"))
    try:
        raise ValueError(canary("path"))
    except ValueError:
        log.exception("failed")
    assert_clean(caplog.text)
    assert "asked for ***" in caplog.text
    assert "ValueError: ***" in caplog.text


def test_short_values_and_unused_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "abc")
    monkeypatch.setenv("UNUSED", "unused-value")
    filled_in("${SHORT}")
    assert mask_secrets("abc unused-value") == "abc unused-value"


def test_a_variable_that_is_gone_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use("path")
    monkeypatch.delenv("CANARY_PATH")
    assert mask_secrets(canary("path")) == canary("path")


def test_a_default_is_no_secret() -> None:
    assert filled_in("${NOT_SET_ANYWHERE:-visible}") == "visible"
    assert mask_secrets("visible") == "visible"


def test_texts_of_a_document_are_masked_and_its_names_are_not() -> None:
    use("path")
    assert mask_all({"a": [canary("path"), 1, None], "b": (canary("path"),)}) == {"a": ["***", 1, None], "b": ["***"]}
