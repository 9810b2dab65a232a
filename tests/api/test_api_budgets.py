"""Budgets at the API service's door: events and bytes of a request, memory of a real process, shares of senders."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from api_client import BATCH, ONE, client_of, event, key_for, send, service
from fakes import two_part_config
from hypothesis import given
from hypothesis import strategies as st
from signed_requests import SECRETS, signature
from sqlalchemy import Engine

from sync_orchestrator.api.body_budget import ByteBudget
from sync_orchestrator.api.intake import batches, group_commit, json_items, routes, turns
from sync_orchestrator.api.intake.group_commit import GroupCommit
from sync_orchestrator.api.intake.turns import Turns
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.recording import ChangeEvent, Recorded, record_on
from sync_orchestrator.core.service.api_keys import make_key
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.strict_json import parse

MIB = 1024 * 1024


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


# Events of one request ----------------------------------------------------------------------------------------------


@pytest.fixture
async def few(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A service that takes ten events of a request."""
    async with client_of(service(engine, two_part_config(limits={"events_per_request": 10})), key_for(engine)) as found:
        yield found


@pytest.mark.parametrize("blanks", ["", " " * 20_000], ids=["small", "large"])
@pytest.mark.parametrize("path", ["/v1/events", "/v1/events?partial=true"])
async def test_a_request_has_a_maximum_number_of_events(
    few: httpx.AsyncClient, engine: Engine, path: str, blanks: str
) -> None:
    async def post(number: int) -> httpx.Response:
        body = json.dumps([event(id=f"e{n}") for n in range(number)]) + blanks
        return await few.post(path, content=body, headers={"Content-Type": BATCH})

    answer = await post(11)
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "A request may have at most 10 events; send smaller batches.",
    )
    assert received(engine) == 0
    assert (await post(10)).json()["accepted"] == 10


@pytest.mark.parametrize("times", [300, 9000], ids=["small", "large"])
@pytest.mark.parametrize("partial", [True, False])
async def test_errors_are_listed_up_to_a_hundred_and_counted_beyond(
    client: httpx.AsyncClient, times: int, partial: bool
) -> None:
    answer = await client.post(f"/v1/events?partial={str(partial).lower()}", json=[event(), *[1] * times])
    listed, status = ("refused", 202) if partial else ("errors", 422)
    found = answer.json()
    assert (answer.status_code, len(found[listed]), found["not_listed"]) == (status, 100, times - 100)
    assert len(answer.content) < 20_000


async def test_errors_that_are_all_listed_leave_nothing_to_count(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events?partial=true", json=[event(), 1])
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 0,
        "refused": [{"index": 1, "field": None, "reason": "an event must be a JSON object"}],
    }


async def test_an_event_with_a_huge_array_in_its_data_is_refused_unparsed(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []

    def watched(body: bytes, *, outer: int = 0) -> Any:
        parsed.append(len(body))
        return parse(body, outer=outer)

    monkeypatch.setattr(batches, "parse", watched)
    huge = event(id="huge", data={"x": [[]] * 600_000})
    for body, kind in (([event(), huge], BATCH), (huge, ONE)):
        assert (await send(client, body, kind)).status_code == 413
    answer = await client.post("/v1/events?partial=true", json=[event(), huge])
    assert [error["index"] for error in answer.json()["refused"]] == [1]
    assert max(parsed) < 1000
    assert received(engine) == 1


async def test_a_large_event_may_be_written_with_blanks_and_escapes(client: httpx.AsyncClient) -> None:
    large = event(data={"x": "键" * 60_000})  # 180 kB, and 360 kB with escapes
    assert (await send(client, large)).status_code == 202
    assert (await send(client, [large, event(id="e2")], BATCH)).json() == {"accepted": 1, "duplicates": 1}
    too_large = event(data={"x": "键" * 100_000})
    for body in (too_large, [event(), too_large]):
        assert (await send(client, body, "application/json")).status_code == 413


def test_json_of_too_many_values_is_not_parsed() -> None:
    with pytest.raises(InvalidEvent, match="too many values"):
        parse(b"[" + b"[]," * 600_000 + b"1]")


# Items of an array --------------------------------------------------------------------------------------------------

_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='a"\\,[]{}é\n', max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(
    items=st.lists(_json, max_size=8),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    piece=st.integers(1, 9),
)
def test_the_items_of_an_array_are_found_wherever_pieces_are_cut(
    items: list[Any], ascii_only: bool, indent: int | None, piece: int
) -> None:
    body = json.dumps(items, ensure_ascii=ascii_only, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "_PIECE", piece)
        found = [place for some in json_items.find_item_spans(body) for place in some]
    assert [json.loads(body[begin:end]) for begin, end in found] == items


@pytest.mark.parametrize(
    "text",
    [
        "[1,",
        "[1",
        "[",
        "[1] 2",
        "[1}",
        '["a]',
        "[1]]",
        "[1,]",
        "[,1]",
        "[,]",
        "[[1]",
        "[1 2]",
        '["\\"]',
        "[1],[2]",
    ],
)
async def test_a_large_array_that_is_no_json_is_refused(client: httpx.AsyncClient, engine: Engine, text: str) -> None:
    whole = f"[{', '.join(json.dumps(event(id=str(n))) for n in range(200))}, "
    for body in (whole + text[1:], text + " " * 20_000):
        for path in ("/v1/events", "/v1/events?partial=true"):
            answer = await client.post(path, content=body, headers={"Content-Type": BATCH})
            assert (answer.status_code, len(answer.json()["errors"])) == (400, 1), body[-20:]
    assert received(engine) == 0


# Who may, before a body is read -------------------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    own = {"key": "body.k", "action": "body.op", "version": "body.v", "data": "body.row"}
    return two_part_config(shop={"events": own}, stock={"webhook_secrets": SECRETS[:1]})


@pytest.fixture
async def client(engine: Engine, config: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, config), key_for(engine)) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "scope", "status"),
    [
        ("/v1/events", "metrics", 403),
        ("/v1/events", "proxy", 403),
        ("/v1/sources/shop/events", "events:stock", 403),
        ("/v1/sources/shop/events", "metrics", 403),
        ("/v1/sources/none/events", "events:shop", 403),
        ("/v1/sources/stock/events", "events:*", 404),
        ("/v1/sources/none/events", "events:*", 404),
    ],
)
async def test_a_key_that_may_not_is_refused_before_the_body_is_read(
    engine: Engine, config: Config, path: str, scope: str, status: int
) -> None:
    taken: list[int] = []

    async with client_of(service(engine, config), key_for(engine, scope)) as found:
        app = found._transport.app  # type: ignore[attr-defined]

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            async def one() -> Any:
                taken.append(1)
                return await receive()

            await app(scope, one, send)

        found._transport.app = watched  # type: ignore[attr-defined]
        answer = await found.post(path, content=b"{}", headers={"Content-Type": ONE})
        found._transport.app = app  # type: ignore[attr-defined]
    assert (answer.status_code, taken) == (status, [])


async def test_an_event_of_another_source_ends_a_large_batch(engine: Engine, config: Config) -> None:
    many = [event(id=f"e{n}") for n in range(300)]
    async with client_of(service(engine, config), key_for(engine, "events:shop")) as found:
        for path in ("/v1/events", "/v1/events?partial=true"):
            answer = await found.post(path, json=[*many, event(id="x", source="stock")])
            assert answer.status_code == 403
    assert received(engine) == 0


# Bytes under way ----------------------------------------------------------------------------------------------------


def test_a_budget_is_shared_and_given_back() -> None:
    budget = ByteBudget(100, 60)
    with budget.begin_reservation("lab", 50) as first:
        with pytest.raises(Refused) as caught:
            first.add_bytes(11)
        assert caught.value.status == 503
        with budget.begin_reservation("shop", 50), pytest.raises(Refused):
            budget.begin_reservation("x", 1)
        assert budget.used_bytes == 50
        first.add_bytes(10)
    assert budget.used_bytes == 0


def _signed_scope(length: int) -> dict[str, Any]:
    headers = {"content-type": ONE, "content-length": str(length), **signature(b"{}")}
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("api", 80),
        "root_path": "",
        "client": ("127.0.0.1", 1),
    }


async def test_bodies_of_unproven_senders_have_one_budget(engine: Engine) -> None:
    """Half-sent bodies fill it; what comes then is refused at once, and keys are no part of it."""
    limits = {"unproven_bytes": 2 * routes._UNPROVEN_REQUEST_BYTES + 1000, "request_bytes": 2000}
    app = service(engine, two_part_config(shop={"webhook_secrets": SECRETS[:1]}, limits=limits))
    sent: list[Any] = []
    gone, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def half() -> Any:
        waiting.release()
        if not gone.is_set():
            await gone.wait()
        return {"type": "http.disconnect"}

    async def take(message: Any) -> None:
        sent.append(message)

    async def post() -> None:
        await app(_signed_scope(2), half, take)

    half_sent = [asyncio.create_task(post()) for _ in range(2)]
    for _ in half_sent:
        await waiting.acquire()
    async with client_of(app, None) as client:
        body = json.dumps(event()).encode()
        answer = await send(client, body, **signature(body))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        key = {"X-API-Key": key_for(engine)}
        assert (await send(client, event(id="k"), **key)).status_code == 202
        gone.set()
        await asyncio.gather(*half_sent)
        assert (await send(client, body, **signature(body))).status_code == 202


async def test_one_senders_bodies_leave_room_for_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    app = service(engine, two_part_config(limits={"bodies_bytes": 4000, "request_bytes": 1000}))
    held, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(connection: Any, asked: Any) -> Any:
        begun.release()
        await held.wait()
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", slow)
    with engine.begin() as connection:
        keys = [make_key(connection, name, ["events:*"], []) for name in ("lab", "shop")]
    body = json.dumps(event()).encode() + b" " * 500
    async with client_of(app, None) as client:
        tasks = [asyncio.create_task(send(client, body, **{"X-API-Key": keys[0]})) for _ in range(6)]
        await begun.acquire()
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status_code for task in refused} == {503}
        other = asyncio.create_task(send(client, body, **{"X-API-Key": keys[1]}))
        await asyncio.sleep(0)
        held.set()
        assert (await other).status_code == 202
        statuses = [answer.status_code for answer in await asyncio.gather(*tasks)]
        assert 202 in statuses
        assert set(statuses) == {202, 503}
        assert (await send(client, body, **{"X-API-Key": keys[0]})).status_code == 202


# Turns and shares ---------------------------------------------------------------------------------------------------


async def test_turns_go_from_sender_to_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_SLICE_SECONDS", 0)
    order: list[str] = []
    all_turns = Turns()

    async def work(sender: str, pieces: int) -> None:
        async with all_turns.make_turn(sender) as turn:
            for _ in range(pieces):
                order.append(sender)
                await turn.go_on()

    await asyncio.gather(*(work("lab", 4) for _ in range(5)), work("shop", 2))
    assert order.index("shop") <= 4
    assert [at for at, sender in enumerate(order) if sender == "shop"][-1] <= 7
    assert (len(order), all_turns.is_waited_for) == (22, False)


async def test_a_turn_that_is_given_up_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_SLICE_SECONDS", 0)
    all_turns, holds = Turns(), asyncio.Event()

    async def hold() -> None:
        async with all_turns.make_turn("lab"):
            await holds.wait()

    async def want() -> str:
        async with all_turns.make_turn("shop"):
            return "done"

    first = asyncio.create_task(hold())
    await asyncio.sleep(0)
    gone, stays = asyncio.create_task(want()), asyncio.create_task(want())
    await asyncio.sleep(0)
    holds.set()
    await first
    gone.cancel()  # it has just been given the turn
    assert await stays == "done"


def _changes(source: str, number: int, name: str = "k") -> list[ChangeEvent]:
    return [ChangeEvent(source, f"{name}{n}", "item", f"{name}{n}", "update", 7) for n in range(number)]


async def test_a_source_does_not_wait_for_the_large_commits_of_another(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def slow(connection: Any, asked: Any) -> list[Recorded]:
        if any(each.source == "stock" for events in asked for each in events):
            begun.release()
            await held.wait()
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", slow)
    async with aclosing(GroupCommit(engine)) as commit:
        flood = [asyncio.create_task(commit.record_events(_changes("stock", 600, f"f{n}-"))) for n in range(8)]
        for _ in range(2):
            await begun.acquire()
        assert await commit.record_events(_changes("shop", 1)) == Recorded(1, 0)
        assert await commit.record_events(_changes("shop", 1, "again")) == Recorded(1, 0)
        held.set()
        assert sum(each.accepted for each in await asyncio.gather(*flood)) == 4800


async def test_sources_that_wait_together_are_taken_in_turns(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[list[str]] = []
    held, begun = asyncio.Event(), asyncio.Event()

    async def slow(connection: Any, asked: Any) -> list[Recorded]:
        commits.append([events[0].source for events in asked])
        begun.set()
        await held.wait()
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", slow)
    monkeypatch.setattr(group_commit, "_MAX_COMMITS", 1)
    monkeypatch.setattr(group_commit, "_MAX_COMMITS_WITH_OTHERS", 1)
    async with aclosing(GroupCommit(engine)) as commit:
        tasks = [asyncio.create_task(commit.record_events(_changes("stock", 100, f"f{n}-"))) for n in range(20)]
        await begun.wait()
        tasks.append(asyncio.create_task(commit.record_events(_changes("shop", 1))))
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(*tasks)
    assert sum(len(each) for each in commits) == 21
    assert "shop" in commits[1]
    assert len(commits[1]) <= 6


# A real process -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(database_url: str, config: Config, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The API service as a process of its own: its port, and the process."""
    (folder / "sync.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = {
        **os.environ,
        "SYNC_DATABASE_URL": database_url,
        "SYNC_CONFIG": str(folder / "sync.yaml"),
        "SYNC_HOME": str(folder),
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sync_orchestrator", "api", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        ends = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1, trust_env=False)
                break
            except httpx.HTTPError:
                assert time.monotonic() < ends, (folder / "api.log").read_text()
                time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process ever had."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        pytest.skip("the peak of a process's memory is read from /proc")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode())


BOMBS: list[tuple[str, Callable[[], str]]] = [
    ("many small items", lambda: "[" + ",".join(["1"] * 3_900_000) + "]"),
    ("many empty objects", lambda: "[" + ",".join(["{}"] * 2_600_000) + "]"),
    ("one array of arrays", lambda: "[[" + ",".join(["[]"] * 2_600_000) + "]]"),
    (
        "large events of empty arrays",
        lambda: (
            "["
            + ",".join(
                json.dumps(event(id=str(n), data={"x": "A"})).replace('"A"', "[" + ",".join(["[]"] * 80_000) + "]")
                for n in range(30)
            )
            + "]"
        ),
    ),
]


@pytest.mark.slow
def test_small_requests_that_unpack_to_millions_of_values_need_little_memory(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    key = key_for(engine)
    with serving(database_url, two_part_config(), tmp_path) as (port, process):
        before = peak_bytes(process)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": BATCH, "Content-Encoding": "gzip"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False) as client:
            for name, bomb in BOMBS:
                answer = client.post("/v1/events?partial=true", content=_packed(bomb()))
                assert answer.status_code in (202, 413, 422), name
                assert len(answer.content) < 20_000
        assert peak_bytes(process) - before < 150 * MIB


@pytest.mark.slow
def test_strangers_leave_no_memory_behind(database_url: str, tmp_path: Path) -> None:
    """Neither by large heads, nor by keys of any kind, nor by half-sent bodies."""
    config = two_part_config(shop={"webhook_secrets": SECRETS[:1]}, limits={"unproven_bytes": 16 * MIB})
    with serving(database_url, config, tmp_path) as (port, process), ExitStack() as stack:
        before = peak_bytes(process)
        head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        signed = "".join(f"{name}: {value}\r\n" for name, value in signature(b"{}").items()).encode()
        for n in range(200):
            with httpx.Client(trust_env=False) as client:
                answer = client.get(f"http://127.0.0.1:{port}/metrics", headers={"X-API-Key": f"sync_{n}" * 5000})
                assert answer.status_code in (401, 431)
        half_sent = []
        for _ in range(40):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(head + signed + b"Content-Length: 8000000\r\n\r\n")
            for _ in range(40):
                one.sendall(b" " * 100_000)
            half_sent.append(one)
        answered = [one for one in half_sent if select.select([one], [], [], 0.01)[0]]
        assert len(answered) > 30
        assert {one.recv(12) for one in answered} == {b"HTTP/1.1 503"}
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5, trust_env=False).status_code == 200
        assert peak_bytes(process) - before < 120 * MIB
