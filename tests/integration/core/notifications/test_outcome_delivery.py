"""Those who want to know what became of changes are told: at least once, in order per record, whoever is down."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
from brokers import Broker, Proxy, Rabbit, running
from brokers import broker as broker
from fakes import answer, lost_answer, two_part_config
from http_server import Server
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from world import World

from sync_orchestrator.brokers.receivers import build_receivers
from sync_orchestrator.core.notifications import outcomes
from sync_orchestrator.core.notifications.outcomes import send_due_outcomes

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def send(world: World) -> int:
    return send_due_outcomes(world.engine, build_receivers(world.config), world.config.alerts)


def unsent(world: World) -> dict[str, dict[str, Any]]:
    with world.engine.begin() as connection:
        return outcomes.count_unsent(connection)


def alerts_of(world: World) -> list[str]:
    rows = world.query("SELECT title FROM sync.alerts WHERE kind = 'outcome_undeliverable' AND resolved_at IS NULL")
    return [row.title for row in rows]


class Hook:
    """A webhook that keeps what it took, and answers as it is told to."""

    def __init__(self, server: Server) -> None:
        self.url = f"{server.url}/hook"
        self.events: list[dict[str, Any]] = []
        self.calls: list[tuple[bytes, dict[str, str]]] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda event: 202
        server.handler = self.handle

    async def handle(self, request: Request) -> Response:
        body = await request.body()
        event = json.loads(body)
        self.calls.append((body, dict(request.headers)))
        status = self.answer(event)
        if status == 202:
            self.events.append(event)
        return JSONResponse({}, status)

    def told(self) -> list[tuple[str, str]]:
        return [(event["type"], event["subject"]) for event in self.events]


@pytest.fixture
def hook(server: Server) -> Hook:
    return Hook(server)


@pytest.fixture
def told_world(make_world: Callable[..., World], hook: Hook) -> World:
    return make_world(outcomes={"audit": {"url": hook.url}})


# What is told -------------------------------------------------------------------------------------------------------


def test_without_receivers_nothing_is_written(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    assert unsent(world) == {}


def test_what_is_mirrored_is_told_as_a_cloud_event(told_world: World, hook: Hook) -> None:
    told_world.put_record("a")
    told_world.run_drain()
    assert send(told_world) == 1
    event = hook.events[0]
    row = told_world.read_record_row("a")
    assert (event["specversion"], event["type"], event["source"], event["subject"]) == (
        "1.0",
        "item.mirrored",
        "sync_orchestrator",
        "a",
    )
    assert event["data"] == {
        "third_party": "erp",
        "group": "A",
        "revision": row.revision,
        "deleted": False,
        "external_id": row.external_id,
    }
    assert hook.calls[0][1]["content-type"].startswith("application/cloudevents+json")
    assert unsent(told_world) == {}
    assert send(told_world) == 0


def test_a_deletion_and_each_newer_revision_are_told_in_order(told_world: World, hook: Hook) -> None:
    steps: tuple[Callable[[], None], ...] = (
        lambda: told_world.put_record("a"),
        lambda: told_world.put_record("a", "new"),
        lambda: told_world.delete_record("a"),
    )
    for step in steps:
        step()
        told_world.run_drain()
    send(told_world)
    revisions = [event["data"]["revision"] for event in hook.events]
    assert revisions == sorted(revisions)
    assert [event["data"]["deleted"] for event in hook.events] == [False, False, True]


def test_what_dies_is_told_with_its_error(told_world: World, hook: Hook) -> None:
    told_world.erp.before = lambda verb, key: answer(422)
    told_world.put_record("a")
    told_world.run_drain()
    told_world.shop.refusal = answer(400)
    told_world.post_event("shop", "b", "create", 1)
    told_world.run_drain()
    send(told_world)
    assert sorted(hook.told()) == [("item.dead", "a"), ("item.dead", "b")]  # of two records, in no order
    refused, unread = sorted(hook.events, key=lambda event: str(event["subject"]))
    assert refused["data"]["error"] == "answer 422"
    assert (unread["data"]["error"], unread["data"]["source"]) == ("answer 400", "shop")


def test_confirmed_drift_is_told_once_with_a_sample(told_world: World, hook: Hook) -> None:
    told_world.put_record("a")
    told_world.run_drain()
    told_world.run_full_sync()
    next(iter(told_world.erp.store.values()))["name"] = "altered"
    for _ in range(2):
        told_world.run_validation(full=True, repair="off")
    send(told_world)
    drift = [event for event in hook.events if event["type"] == "item.drift"]
    assert [(event["subject"], event["data"]["drift"], event["data"]["group"]) for event in drift] == [
        ("a", "different", "A")
    ]
    assert drift[0]["data"]["sample"] == [{"field": "name", "ours": "n", "theirs": "altered"}]


def test_each_receiver_hears_what_it_asked_for(make_world: Callable[..., World], hook: Hook) -> None:
    world = make_world(
        outcomes={
            "every": {"url": hook.url},
            "deaths": {"url": hook.url, "kinds": ["dead"]},
            "none": {"url": hook.url, "entities": []},
        }
    )
    world.put_record("a")
    world.run_drain()
    assert unsent(world) == {"every": {"unsent": 1, "error": None}}
    assert send(world) == 1


def test_a_receiver_that_is_gone_from_the_configuration_is_owed_nothing(told_world: World, hook: Hook) -> None:
    told_world.put_record("a")
    told_world.run_drain()
    assert send_due_outcomes(told_world.engine, {}, told_world.config.alerts) == 0
    assert unsent(told_world) == {}


def test_an_answer_that_was_lost_is_told_of_once_it_is_known(told_world: World, hook: Hook) -> None:
    """The record is pushed again, and looked at again; its revision is news once."""
    lost = iter([lost_answer()])
    told_world.erp.after = lambda verb, key: next(lost, None) if verb == "create" else None
    told_world.put_record("a")
    for _ in range(4):
        told_world.run_drain()
        told_world.advance_clock(60)
    assert told_world.count_events_by_state() == {"done": 2}
    send(told_world)
    assert hook.told() == [("item.mirrored", "a")]


def test_a_repair_is_news(told_world: World, hook: Hook) -> None:
    told_world.put_record("a")
    told_world.run_drain()
    told_world.run_full_sync()
    next(iter(told_world.erp.store.values()))["name"] = "altered"
    told_world.run_validation(full=True)
    told_world.run_drain()
    send(told_world)
    assert hook.told() == [("item.mirrored", "a"), ("item.drift", "a"), ("item.mirrored", "a")]


# Webhooks -----------------------------------------------------------------------------------------------------------


def test_calls_are_signed(make_world: Callable[..., World], hook: Hook) -> None:
    world = make_world(
        outcomes={"audit": {"url": hook.url, "secret": SECRET, "headers": {"Authorization": "Bearer t"}}}
    )
    world.put_record("a", "Ünï")
    world.run_drain()
    send(world)
    body, headers = hook.calls[0]
    assert Webhook(SECRET).verify(body, headers)["id"] == headers["webhook-id"] == hook.events[0]["id"]
    assert headers["authorization"] == "Bearer t"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


@pytest.mark.parametrize("status", [500, 503, 401, 404, 429, 301])
def test_a_webhook_that_is_down_is_left_alone_and_told_later(
    told_world: World, hook: Hook, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    hook.answer = lambda event: status
    for key in ("a", "b"):
        told_world.put_record(key)
    told_world.run_drain()
    assert send(told_world) == 0
    calls = len(hook.calls)
    assert calls <= 2
    hook.answer = lambda event: 202
    assert send(told_world) == 0
    assert len(hook.calls) == calls
    assert unsent(told_world)["audit"] == {"unsent": 2, "error": f"answer {status}"}
    assert f"audit: answer {status}" in caplog.text
    told_world.advance_clock(6)
    assert send(told_world) == 2
    assert sorted(hook.told()) == [("item.mirrored", "a"), ("item.mirrored", "b")]


def test_the_rests_grow(told_world: World, hook: Hook) -> None:
    hook.answer = lambda event: 500
    told_world.put_record("a")
    told_world.run_drain()
    rests = []
    for _ in range(4):
        send(told_world)
        rests.append(
            told_world.query("SELECT EXTRACT(epoch FROM not_before - sync.clock()) AS s FROM sync.outcome_receivers")[
                0
            ].s
        )
        told_world.advance_clock(1000)
    assert [round(rest) for rest in rests] == [5, 10, 20, 40]


def test_retry_after_is_obeyed(told_world: World, hook: Hook, server: Server) -> None:
    async def busy(request: Request) -> Response:
        return JSONResponse({}, 503, headers={"Retry-After": "600"})

    server.handler = busy
    told_world.put_record("a")
    told_world.run_drain()
    send(told_world)
    server.handler = hook.handle
    told_world.advance_clock(590)
    assert send(told_world) == 0
    told_world.advance_clock(20)
    assert send(told_world) == 1


def test_one_that_is_refused_keeps_back_its_record_alone(told_world: World, hook: Hook) -> None:
    hook.answer = lambda event: 422 if event["subject"] == "a" else 202
    for name in ("one", "two"):
        for key in ("a", "b"):
            told_world.put_record(key, name)
        told_world.run_drain()
    assert send(told_world) == 2
    assert hook.told() == [("item.mirrored", "b")] * 2
    assert unsent(told_world)["audit"] == {"unsent": 2, "error": "answer 422"}
    told_world.put_record("b", "three")
    told_world.run_drain()
    assert send(told_world) == 1
    hook.answer = lambda event: 202
    told_world.advance_clock(11)
    assert send(told_world) == 2
    revisions = [event["data"]["revision"] for event in hook.events if event["subject"] == "a"]
    assert revisions == sorted(revisions)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + bytes(1_000_000),
        "HTTP/1.1 200 OK\r\nX-Name: 日本\r\nSet-Cookie: a=日本\r\nContent-Length: 0\r\n\r\n".encode(),
    ],
)
def test_what_a_webhook_sends_back_is_not_unpacked_nor_read_to_its_end(
    make_world: Callable[..., World], raw: bytes
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        world = make_world(outcomes={"audit": {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/", "timeout": 5}})
        world.put_record("a")
        world.run_drain()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65_536)
                connection.sendall(raw)
                connection.recv(1)

        thread = threading.Thread(target=talk)
        thread.start()
        send(world)
        thread.join()
        assert unsent(world) == {}


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nX Y: \xff\x00\r\n\r\n", b"\xff\xfe", b""]
)
def test_a_webhook_that_speaks_no_http_is_down(make_world: Callable[..., World], raw: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        world = make_world(outcomes={"audit": {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/", "timeout": 5}})
        world.put_record("a")
        world.run_drain()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(raw)

        thread = threading.Thread(target=talk)
        thread.start()
        send(world)
        thread.join()
        assert "no answer" in unsent(world)["audit"]["error"]


def test_a_webhook_that_nobody_listens_at(make_world: Callable[..., World]) -> None:
    world = make_world(outcomes={"audit": {"url": "http://127.0.0.1:9/hook"}})
    world.put_record("a")
    world.run_drain()
    assert send(world) == 0
    assert unsent(world)["audit"]["error"] == "no answer (ConnectError)"


def test_a_person_is_told_in_time_and_of_the_end(make_world: Callable[..., World], hook: Hook) -> None:
    world = make_world(outcomes={"audit": {"url": hook.url}}, alerts={"overdue_after": 60})
    hook.answer = lambda event: 500
    world.put_record("a")
    world.run_drain()
    send(world)
    assert alerts_of(world) == []
    world.advance_clock(100)
    send(world)
    assert alerts_of(world) == ["audit: 1 outcomes wait for it, the oldest for 2 minutes"]
    hook.answer = lambda event: 202
    world.advance_clock(100)
    assert send(world) == 1
    assert alerts_of(world) == []


def test_one_receiver_that_is_down_keeps_no_other_waiting(make_world: Callable[..., World], hook: Hook) -> None:
    world = make_world(outcomes={"down": {"url": "http://127.0.0.1:9"}, "up": {"url": hook.url}})
    world.put_record("a")
    world.run_drain()
    assert send(world) == 1
    assert list(unsent(world)) == ["down"]


@pytest.mark.parametrize(("point", "repeats"), [("outcomes.taken", 1), ("outcomes.delivered", 2)])
def test_a_sender_that_dies_is_followed_by_another_with_the_same_ids(
    told_world: World, hook: Hook, point: str, repeats: int
) -> None:
    told_world.put_record("a")
    told_world.run_drain()
    assert told_world.run_until_crash(lambda: send(told_world), point, 1)
    assert send(told_world) == 0, "the receiver is the dead sender's for a minute"
    told_world.advance_clock(61)
    assert send(told_world) == 1
    assert len(hook.events) == repeats
    assert len({event["id"] for event in hook.events}) == 1
    assert len({json.dumps(event) for event in hook.events}) == 1


def test_many_are_sent_in_batches(told_world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_MAX_BATCH", 7)
    for number in range(30):
        told_world.put_record(f"k{number}")
    told_world.run_drain()
    assert send(told_world) == 30
    assert len({event["id"] for event in hook.events}) == 30


# Brokers ------------------------------------------------------------------------------------------------------------


def test_a_broker_gets_cloud_events(make_world: Callable[..., World], broker: Broker) -> None:
    world = make_world(outcomes={"bus": {"url": broker.url, "queue": broker.queue, "source": "/mirror"}})
    for name in ("one", "two"):
        world.put_record("a", name)
        world.run_drain()
    assert send(world) == 2
    got = list(broker.received())
    events = [json.loads(body) for body, _ in got]
    assert [event["data"]["revision"] for event in events] == sorted(event["data"]["revision"] for event in events)
    assert {(event["type"], event["source"], event["subject"]) for event in events} == {
        ("item.mirrored", "/mirror", "a")
    }
    assert {kind for _, kind in got} <= {"application/cloudevents+json", None}
    assert unsent(world) == {}


def test_an_exchange_gets_them_by_their_type(make_world: Callable[..., World]) -> None:
    with running(Rabbit) as rabbit:
        exchange = f"{rabbit.queue}-exchange"
        rabbit.channel.exchange_declare(exchange, "topic", durable=False, auto_delete=False)
        try:
            rabbit.channel.queue_bind(rabbit.queue, exchange, routing_key="item.mirrored")
            world = make_world(outcomes={"bus": {"url": rabbit.url, "exchange": exchange}})
            world.put_record("a")
            world.run_drain()
            assert send(world) == 1
            assert len(list(rabbit.received())) == 1
        finally:
            rabbit.channel.exchange_delete(exchange)
        world.put_record("a", "new")
        world.run_drain()
        assert send(world) == 0
        assert "no exchange" in unsent(world)["bus"]["error"]


def test_a_broker_that_is_down_and_comes_back(
    make_world: Callable[..., World], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy = Proxy(broker.url)
    world = make_world(outcomes={"bus": {"url": proxy.url, "queue": broker.queue}})
    world.put_record("a")
    world.run_drain()
    proxy.cut()
    assert send(world) == 0
    assert unsent(world)["bus"]["unsent"] == 1
    proxy.open()
    world.advance_clock(6)
    try:
        assert send(world) == 1
    finally:
        proxy.cut()
    assert len(list(broker.received())) == 1
    assert "guest:guest" not in caplog.text


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("receiver", "said"),
    [
        ({"url": "https://a", "queue": "q"}, "queue: a webhook has none"),
        ({"url": "amqp://b"}, "say 'queue' or 'exchange'"),
        ({"url": "amqp://b", "queue": "q", "exchange": "e"}, "say 'queue' or 'exchange'"),
        ({"url": "redis://b", "exchange": "e"}, "there is no such thing in Redis"),
        ({"url": "amqp://b", "queue": "q", "secret": SECRET}, "secret: belongs to a webhook"),
        ({"url": "https://a", "kinds": []}, "at least 1 item"),
        ({"url": "https://a", "entities": ["nobody"]}, "there is no entity 'nobody'"),
    ],
)
def test_a_receiver_that_cannot_be_told_is_refused(receiver: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        two_part_config(outcomes={"audit": receiver})
