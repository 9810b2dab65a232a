"""Alerts as people get them: a webhook and a mail server that really listen, some that are down, senders that die."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apprise
import pytest
from alert_servers import MailServer, Receiver, Webhook
from fakes import answer
from pydantic import ValidationError
from typer.testing import CliRunner
from world import World

from sync_orchestrator.cli import app
from sync_orchestrator.config import AlertSettings
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.notifications.alert_messages import ACTIONS
from sync_orchestrator.core.notifications.alert_receivers import list_receivers
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.operations.status import collect_status as collect_status

TITLE = "item: changes that could not be mirrored"
RETRY = 30.0
"""So long an alert rests that could not be sent, the first time; twice as long the next."""
MAX_REST_SECONDS = 900.0
LEASE = 60.0
"""So long an alert belongs to its sender."""
CRASHES = (
    "events.taken",
    "events.before_merge_commit",
    "events.merged",
    "drain.pushes_claimed",
    "push.before_call",
    "drain.before_settle",
    "drain.before_settle_commit",
    "drain.settled",
)


@contextmanager
def closed_at_the_end(*receivers: Receiver) -> Iterator[None]:
    try:
        yield
    finally:
        for receiver in receivers:
            receiver.close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy the environment names, these servers are called themselves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def absent() -> Iterator[Webhook]:
    """A webhook whose server is down."""
    webhook = Webhook()
    with closed_at_the_end(webhook):
        yield webhook


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    webhook.up()
    with closed_at_the_end(webhook):
        yield webhook


@pytest.fixture
def mail() -> Iterator[MailServer]:
    server = MailServer()
    server.up()
    with closed_at_the_end(server):
        yield server


def send(world: World, *urls: str, **settings: Any) -> int:
    return alerts.send_due_alerts(world.engine, AlertSettings(urls=list(urls), **{"group_wait": 0, **settings}))


def tell(
    world: World,
    cause: str = "work",
    title: str = "work is due and not done",
    kind: str = "overdue",
    entity: str | None = None,
) -> None:
    with world.engine.begin() as connection:
        alerts.raise_alert(connection, kind, cause, title, entity=entity)


def resolve(world: World, kind: str = "overdue") -> None:
    with world.engine.begin() as connection:
        alerts.resolve_alert(connection, kind)


def look(world: World) -> None:
    """The round of every minute."""
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts)


def alerts_in_status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = collect_status(world.engine)["alerts"]
    return found


def refuse(world: World, key: str = "a", status: int = 422) -> None:
    """The third party refuses this record, which is notified of."""
    world.erp.before = lambda verb, k: answer(status) if k == key else None
    world.put_record(key)


# What arrives -------------------------------------------------------------------------------------------------------


def test_a_thousand_records_of_one_cause_are_one_message_with_their_count(
    make_world: Callable[..., World], webhook: Webhook
) -> None:
    world = make_world(system={"breaker": {"failures": 5000}})
    world.erp.before = lambda verb, key: answer(422)
    for number in range(1000):
        world.put_record(f"k{number:03}", notify=False)
    record_events(
        world.engine,
        [
            ChangeEvent(name, f"{name} {key}", "item", key, "create", row.version, row.data, row.group)
            for name, source in (("shop", world.shop), ("stock", world.stock))
            for key, row in source.rows.items()
        ],
    )
    world.run_drain()
    assert send(world, webhook.url, ui_url="https://dagster.example.org") == 1
    [message] = webhook.heard
    assert message["title"] == TITLE
    what, examples, *where_and_do = message["message"].splitlines()
    assert what == "What: item: answer 422 (1000)"
    assert len(set(re.findall(r"k\d{3}(?=,|$)", examples.removeprefix("Examples: ")))) == 10
    assert where_and_do == [
        "Where: https://dagster.example.org/assets/item/mirror",
        f"Do: {ACTIONS['dead']}",
    ]
    assert (send(world, webhook.url), len(webhook.heard)) == (0, 1)


def test_what_a_full_sync_could_not_push_is_one_message(world: World, webhook: Webhook) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a", notify=False)
    world.run_full_sync(patience=30)
    send(world, webhook.url)
    assert [message["message"].splitlines()[0] for message in webhook.heard] == ["What: item: answer 422 (1)"]


def test_each_cause_has_its_line_in_one_message(world: World, webhook: Webhook) -> None:
    world.erp.before = lambda verb, key: answer({"a": 422, "b": 409, "c": 422}[key])
    for key in "abc":
        world.put_record(key)
    world.run_drain()
    assert send(world, webhook.url) == 1
    assert webhook.titles == [TITLE]
    lines = webhook.heard[0]["message"].splitlines()
    assert sorted(lines[:2]) == ["What: item: answer 409 (1)", "What: item: answer 422 (2)"]
    assert [line.split(":")[0] for line in lines[2:]] == ["Examples", "Where", "Do"]


def test_what_comes_within_the_group_wait_is_one_message(world: World, webhook: Webhook) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a")
    world.run_drain()
    assert send(world, webhook.url, group_wait=5) == 0
    world.advance_clock(4)
    world.put_record("b")
    world.run_drain()
    assert send(world, webhook.url, group_wait=5) == 0
    world.advance_clock(2)
    assert send(world, webhook.url, group_wait=5) == 1
    assert "answer 422 (2)\nExamples: a, b" in webhook.heard[0]["message"]


def test_mail_has_title_count_examples_and_place(world: World, mail: MailServer) -> None:
    refuse(world)
    world.run_drain()
    assert send(world, mail.url) == 1
    assert (mail.titles, mail.recipients) == ([TITLE], ["oncall@example.org"])
    for text in mail.texts().values():
        said = " ".join(text.split())
        assert "What: item: answer 422 (1) Examples: a Where: http://127.0.0.1:3000/assets/item/mirror Do: Read" in said


def test_mail_has_a_line_for_each_thing(world: World, mail: MailServer) -> None:
    refuse(world)
    world.run_drain()
    send(world, mail.url)
    assert [line.split(":")[0] for line in mail.texts()["text/plain"].splitlines()] == [
        "What",
        "Examples",
        "Where",
        "Do",
    ]


def test_what_others_wrote_is_no_markup_in_a_mail(world: World, mail: MailServer) -> None:
    tell(world, cause="<img src=https://example.org/seen.png>")
    send(world, mail.url)
    assert "<img" not in mail.texts().get("text/html", "")


def test_no_text_keeps_an_alert_from_being_sent(world: World, webhook: Webhook, mail: MailServer) -> None:
    texts = [
        "two\nlines",
        "two\r\nBcc: other@example.org",
        "tab\tand \x1b[2J",
        "键 – “x”",
        "long" * 80,
        "{b} %s &amp; \\n",
    ]
    for text in texts:
        tell(world, cause=text, title=text)
        assert send(world, webhook.url, mail.url) == 2
    assert (len(webhook.heard), len(mail.heard)) == (len(texts), len(texts))
    assert {(len(message.get_all("Subject", [])), message["Bcc"]) for message in mail.heard} == {(1, None)}
    assert set(mail.recipients) == {"oncall@example.org"}


def test_without_an_address_it_is_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    refuse(world)
    world.run_drain()
    assert (send(world), send(world)) == (1, 0)
    [line] = [entry.getMessage() for entry in caplog.records if entry.name == "sync_orchestrator.alerts"]
    assert line.startswith(f"ALERT {TITLE}\nWhat: item: answer 422 (1)\n")


def test_a_given_log_gets_each_message_once_whoever_takes_it(world: World, webhook: Webhook, absent: Webhook) -> None:
    written: list[str] = []
    absent.up()
    tell(world, title="it's 100% full")
    settings = AlertSettings(urls=[webhook.url, absent.url], group_wait=0)
    assert alerts.send_due_alerts(world.engine, settings, written.append) == 2
    assert [line.splitlines()[0] for line in written] == ["ALERT it's 100% full"]


def test_more_messages_than_a_round_sends_arrive_in_turns(world: World, webhook: Webhook) -> None:
    for number in range(12):
        tell(world, cause=f"cause {number}", title=f"title {number}", entity=f"entity{number}")
    assert (send(world, webhook.url), send(world, webhook.url), send(world, webhook.url)) == (10, 2, 0)
    assert webhook.titles == [f"title {number}" for number in range(12)]


def test_long_causes_and_titles_are_cut_and_still_end(world: World, webhook: Webhook) -> None:
    cause = "x" * 3000
    for _ in range(2):
        tell(world, cause=cause, title=cause)
    send(world, webhook.url)
    with world.engine.begin() as connection:
        alerts.resolve_alert(connection, "overdue", cause)
    send(world, webhook.url)
    assert webhook.titles == ["x" * 300, "Over: " + "x" * 300]


# When it is over ----------------------------------------------------------------------------------------------------


def test_whoever_was_told_is_told_once_when_it_is_over(world: World, webhook: Webhook, mail: MailServer) -> None:
    refuse(world)
    world.run_drain()
    send(world, webhook.url, mail.url)
    look(world)
    assert send(world, webhook.url, mail.url) == 0
    world.erp.before = lambda verb, key: None
    world.put_record("a", name="fixed")
    world.run_drain()
    look(world)
    assert (send(world, webhook.url, mail.url), send(world, webhook.url, mail.url)) == (2, 0)
    assert webhook.titles == mail.titles == [TITLE, f"Over: {TITLE}"]
    assert "Over since 20" in webhook.heard[1]["message"]


def test_the_same_cause_after_its_end_is_told_anew(world: World, webhook: Webhook) -> None:
    for _ in range(2):
        tell(world, title="again")
        send(world, webhook.url)
        resolve(world)
        send(world, webhook.url)
    assert webhook.titles == ["again", "Over: again"] * 2


def test_what_was_over_before_it_could_be_sent_is_not_reported_as_going_on(world: World, absent: Webhook) -> None:
    tell(world)
    send(world, absent.url)
    resolve(world)
    absent.up()
    for _ in range(3):
        world.advance_clock(MAX_REST_SECONDS)
        send(world, absent.url)
    assert absent.titles == []


def test_the_record_that_was_waited_for_ends_the_alert(world: World, webhook: Webhook) -> None:
    world.post_event("shop", "late", "update", 5, {"name": "n", "store": "A"})
    world.run_drain()
    world.advance_clock(86_400 + 1)
    look(world)
    world.run_drain()
    send(world, webhook.url)
    assert webhook.titles == ["item: changes wait for records that never came"]
    world.put_record("late")
    world.run_drain()
    assert world.count_events_by_state().get("waiting") is None
    look(world)
    send(world, webhook.url)
    assert len(webhook.titles) == 2


def test_drift_that_repair_does_not_remove_is_reported(world: World, webhook: Webhook) -> None:
    world.put_record("a", count=1, notify=False)
    world.run_full_sync()
    for _ in range(3):
        world.erp.store[world.read_record_row("a").external_id]["count"] = 1.5
        world.advance_clock(1)
        result = world.run_validation(full=True)
        world.run_drain()
        send(world, webhook.url)
    assert (result.verdict, result.persistent) == ("drift", 1)
    assert [title for title in webhook.titles if "persistent" in title]


# More of what was told ----------------------------------------------------------------------------------------------


def test_what_is_added_later_is_told_after_growing_intervals_with_its_count(
    make_world: Callable[..., World], webhook: Webhook
) -> None:
    """At once it is not; not at all where nothing was added."""
    world = make_world(system={"breaker": {"failures": 100}})
    world.erp.before = lambda verb, key: answer(422)
    told = []
    for hours in (0, 0.5, 0.6, 1.1, 1, 4.1):
        world.advance_clock(hours * 3600)
        world.put_record(f"after {hours}")
        world.run_drain()
        send(world, webhook.url)
        told.append(len(webhook.heard))
    assert told == [1, 1, 2, 2, 3, 4]
    world.advance_clock(86_400)
    assert send(world, webhook.url) == 0
    assert webhook.titles == [TITLE] + [f"Still: {TITLE}"] * 3
    assert [message["message"].splitlines()[0] for message in webhook.heard] == [
        f"What: item: answer 422 ({n})" for n in (1, 3, 5, 6)
    ]


def test_the_end_of_an_alert_has_its_last_count(world: World, webhook: Webhook) -> None:
    world.erp.before = lambda verb, key: answer(422)
    for key in "abc":
        world.put_record(key)
        world.run_drain()
        send(world, webhook.url)
    world.erp.before = lambda verb, key: None
    for key in "abc":
        world.put_record(key, name="fixed")
    world.run_drain()
    look(world)
    send(world, webhook.url)
    assert webhook.titles == [TITLE, f"Over: {TITLE}"]
    assert webhook.heard[1]["message"].startswith("What: item: answer 422 (3)\nOver since 20")


def test_what_goes_on_is_told_in_its_newest_words(world: World, webhook: Webhook) -> None:
    tell(world, title="work is due for 15 minutes")
    send(world, webhook.url)
    world.advance_clock(3600)
    tell(world, title="work is due for 75 minutes")
    send(world, webhook.url)
    assert webhook.titles == ["work is due for 15 minutes", "Still: work is due for 75 minutes"]


# Many of a kind -----------------------------------------------------------------------------------------------------


def test_drift_in_many_groups_is_one_message_and_so_is_its_end(world: World, webhook: Webhook) -> None:
    for number in range(20):
        group = f"item {number:02}"
        tell(world, kind="drift", cause=group, title=f"{group}: {number + 1} missing", entity="item")
    tell(world, kind="drift", cause="item 00: persistent", title="item 00: 1 persistent", entity="item")
    assert (send(world, webhook.url), send(world, webhook.url)) == (1, 0)
    [message] = webhook.heard
    assert message["title"] == "item: drift in 20 groups"
    assert message["message"].splitlines() == [
        *(f"What: item {number:02}: {number + 1} missing" for number in range(10)),
        "and 11 more",
        "Where: http://127.0.0.1:3000/assets/item/mirror",
        f"Do: {ACTIONS['drift']}",
    ]
    resolve(world, "drift")
    assert (send(world, webhook.url), send(world, webhook.url)) == (1, 0)
    assert webhook.titles[1] == "Over: item: drift in 20 groups"
    assert webhook.heard[1]["message"].splitlines()[10:11] == ["and 11 more"]


def test_other_kinds_and_entities_are_messages_of_their_own(world: World, webhook: Webhook) -> None:
    for kind, entity in (("drift", "item"), ("drift", "order"), ("invalid_source_records", "item"), ("overdue", None)):
        tell(world, kind=kind, cause=f"{entity} A", title=f"{kind} {entity}", entity=entity)
    assert send(world, webhook.url) == 4


def test_runs_that_failed_are_one_message(world: World, webhook: Webhook) -> None:
    for group in "AB":
        tell(world, kind="run_failed", cause=f"assets {group}", title=f"a run of assets {group} failed")
    send(world, webhook.url)
    assert webhook.titles == ["runs of 2 jobs failed"]


# Who is down, and who dies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Webhook, MailServer])
def test_server_that_is_down_gets_it_once_when_it_is_back(world: World, kind: type[Webhook] | type[MailServer]) -> None:
    """Tried again after its rest, which grows, not at every tick."""
    receiver: Receiver = kind()
    with closed_at_the_end(receiver):
        refuse(world)
        world.run_drain()
        assert send(world, receiver.url) == 0
        world.advance_clock(RETRY + 1)
        assert send(world, receiver.url) == 0
        receiver.up()
        world.advance_clock(2 * RETRY - 1)
        assert (send(world, receiver.url), receiver.titles) == (0, [])
        world.advance_clock(2)
        assert (send(world, receiver.url), send(world, receiver.url), receiver.titles) == (1, 0, [TITLE])


def test_webhook_that_refuses_it_gets_it_later(world: World, webhook: Webhook) -> None:
    tell(world)
    for status in (301, 404, 429, 500, 503):
        webhook.status = status
        assert send(world, webhook.url) == 0, status
        world.advance_clock(MAX_REST_SECONDS)
    webhook.status = 204
    assert (send(world, webhook.url), len(webhook.heard)) == (1, 1)


def test_what_gathers_while_the_server_is_down_arrives_as_one(world: World, absent: Webhook) -> None:
    world.erp.before = lambda verb, key: answer(422)
    for key in "abc":
        world.put_record(key)
        world.run_drain()
        assert send(world, absent.url) == 0
        world.advance_clock(MAX_REST_SECONDS)
    absent.up()
    assert send(world, absent.url) == 1
    assert "answer 422 (3)\nExamples: a, b, c" in absent.heard[0]["message"]


@pytest.mark.slow
def test_drains_that_die_take_no_alert_with_them(make_world: Callable[..., World], webhook: Webhook) -> None:
    """A record is dead and told of in the same moment, wherever its drain dies."""
    world = make_world(system={"breaker": {"failures": 100}})
    world.erp.before = lambda verb, key: answer(422)
    for point in CRASHES:
        world.put_record(point)
        assert world.run_until_crash(world.run_drain, point, 1), point
        dead = {row.key for row in world.query("SELECT key FROM sync.events WHERE state = 'dead'")}
        assert {row.key for row in world.query("SELECT key FROM sync.alert_records")} == dead, point
        world.advance_clock(300)
        world.run_drain()
        world.run_drain()
    assert world.count_events_by_state() == {"dead": 2 * len(CRASHES)}
    assert (send(world, webhook.url), send(world, webhook.url), webhook.titles) == (1, 0, [TITLE])
    assert f"answer 422 ({len(CRASHES)})" in webhook.heard[0]["message"]


def test_sender_that_dies_before_it_sends_is_replaced(world: World, webhook: Webhook) -> None:
    tell(world)
    assert world.run_until_crash(lambda: send(world, webhook.url), "alerts.taken", 1)
    world.advance_clock(LEASE - 30)
    assert (send(world, webhook.url), webhook.heard) == (0, [])
    world.advance_clock(31)
    assert (send(world, webhook.url), send(world, webhook.url), len(webhook.heard)) == (1, 0, 1)


def test_sender_that_dies_after_it_sent_costs_one_repetition(world: World, webhook: Webhook) -> None:
    tell(world)
    assert world.run_until_crash(lambda: send(world, webhook.url), "alerts.delivered", 1)
    for _ in range(3):
        world.advance_clock(LEASE + 1)
        send(world, webhook.url)
    assert len(webhook.heard) == 2


def test_two_senders_at_once_send_it_once(world: World, webhook: Webhook) -> None:
    others: list[int] = []
    webhook.on_message = lambda title: others.append(send(world, webhook.url))
    tell(world)
    assert (send(world, webhook.url), others, len(webhook.heard)) == (1, [0], 1)


def test_what_a_slow_server_kept_waiting_is_sent_by_one_sender(world: World, webhook: Webhook) -> None:
    """The first message takes longer than the senders' lease; the second has not been tried by then."""

    def slow(title: str) -> None:
        webhook.on_message = lambda title: None
        world.advance_clock(LEASE + 1)
        send(world, webhook.url)

    webhook.on_message = slow
    tell(world, cause="first", title="first")
    tell(world, cause="second", title="second", entity="item")
    send(world, webhook.url)
    assert webhook.titles.count("second") == 1


def test_slow_sender_that_failed_at_last_leaves_what_another_has_sent(world: World, webhook: Webhook) -> None:
    def slow(title: str) -> None:
        webhook.on_message = lambda title: None
        world.advance_clock(LEASE + 1)
        assert send(world, webhook.url) == 1
        webhook.status = 500

    webhook.on_message = slow
    tell(world)
    assert send(world, webhook.url) == 0
    webhook.status = 200
    world.advance_clock(MAX_REST_SECONDS)
    assert (send(world, webhook.url), len(webhook.heard)) == (0, 1)
    assert alerts_in_status(world)["send_error"] is None


# Several addresses --------------------------------------------------------------------------------------------------


def test_every_address_gets_it_once(world: World, webhook: Webhook, mail: MailServer) -> None:
    tell(world)
    assert (send(world, webhook.url, mail.url, mail.url), send(world, webhook.url, mail.url)) == (2, 0)
    assert webhook.titles == mail.titles == ["work is due and not done"]


def test_an_address_that_is_up_is_told_though_another_is_down(world: World, webhook: Webhook, absent: Webhook) -> None:
    tell(world)
    send(world, absent.url, webhook.url)
    assert webhook.titles == ["work is due and not done"]


def test_nobody_is_told_again_because_another_address_is_down(world: World, webhook: Webhook, absent: Webhook) -> None:
    tell(world)
    for _ in range(4):
        send(world, webhook.url, absent.url)
        world.advance_clock(MAX_REST_SECONDS)
    absent.up()
    send(world, webhook.url, absent.url)
    assert (len(absent.heard), len(webhook.heard)) == (1, 1)


def test_who_was_not_alerted_does_not_hear_of_the_end(world: World, webhook: Webhook, absent: Webhook) -> None:
    tell(world)
    send(world, webhook.url, absent.url)
    resolve(world)
    absent.up()
    world.advance_clock(MAX_REST_SECONDS)
    send(world, webhook.url, absent.url)
    assert (webhook.titles, absent.titles) == (["work is due and not done", "Over: work is due and not done"], [])


def test_an_end_that_could_not_be_sent_is_sent_later(world: World, webhook: Webhook) -> None:
    tell(world)
    send(world, webhook.url)
    resolve(world)
    webhook.status = 503
    assert send(world, webhook.url) == 0
    webhook.status = 200
    world.advance_clock(RETRY + 1)
    assert (send(world, webhook.url), webhook.titles[1:]) == (1, ["Over: work is due and not done"])


def test_an_address_that_is_new_hears_of_what_is_open(world: World, webhook: Webhook, mail: MailServer) -> None:
    tell(world)
    send(world, webhook.url)
    assert send(world, webhook.url, mail.url) == 1
    assert (len(webhook.heard), len(mail.heard)) == (1, 1)


def test_a_message_that_is_refused_holds_up_no_other(world: World, webhook: Webhook) -> None:
    def picky(title: str) -> None:
        webhook.status = 400 if title == "too long for it" else 200

    webhook.on_message = picky
    tell(world, title="too long for it")
    tell(world, cause="another", title="another", entity="item")
    assert (send(world, webhook.url), send(world, webhook.url), webhook.titles) == (0, 1, ["another"])


def test_plugin_that_raises_keeps_nobody_from_being_told(
    world: World, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    working = apprise.Apprise.notify

    def notify(self: apprise.Apprise, **message: Any) -> Any:
        if SECRET in self[0].url():
            raise RuntimeError(self[0].url())
        return working(self, **message)

    monkeypatch.setattr(apprise.Apprise, "notify", notify)
    tell(world)
    assert send(world, f"form://127.0.0.1:1/{SECRET}", webhook.url) == 1
    assert alerts_in_status(world)["send_error"] == "alerts.urls[0] (form) failed with RuntimeError"
    assert SECRET not in said(world, caplog)


def test_one_mistyped_address_does_not_silence_the_others(world: World, webhook: Webhook) -> None:
    tell(world)
    send(world, webhook.url, "slak://token")
    assert webhook.titles == ["work is due and not done"]


def test_that_alerts_cannot_be_sent_is_in_the_log_and_the_status(
    world: World, webhook: Webhook, absent: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    tell(world)
    with caplog.at_level(logging.INFO):
        send(world, webhook.url, absent.url)
    error = "alerts.urls[1] (json) did not take the message"
    assert [entry.getMessage() for entry in caplog.records if entry.name == "sync_orchestrator.alerts"] == [
        f"An alert could not be sent, and will be tried again: {error}."
    ]
    found = alerts_in_status(world)
    assert (len(found["open"]), found["unsent"], found["send_error"]) == (1, 1, error)
    absent.up()
    world.advance_clock(RETRY + 1)
    send(world, webhook.url, absent.url)
    found = alerts_in_status(world)
    assert (found["open"][0]["sent"], found["unsent"], found["send_error"]) == (True, 0, None)


def test_an_address_that_was_taken_out_is_no_error_any_more(world: World, webhook: Webhook, absent: Webhook) -> None:
    tell(world)
    send(world, webhook.url, absent.url)
    send(world, webhook.url)
    found = alerts_in_status(world)
    assert (found["unsent"], found["send_error"]) == (0, None)


def test_what_nobody_was_told_of_yet_is_unsent(world: World) -> None:
    tell(world)
    found = alerts_in_status(world)
    assert (found["unsent"], found["send_error"]) == (1, None)


def test_status_of_the_command_line_says_why_alerts_do_not_arrive(
    world: World, absent: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.composition.open_database", lambda: world.engine)
    monkeypatch.setattr("sync_orchestrator.composition.require_database", lambda: None)
    tell(world)
    send(world, absent.url)
    told = CliRunner().invoke(app, ["status"]).output
    assert "Alerts do not arrive (1 unsent): alerts.urls[0] (json) did not take the message." in told
    found = json.loads(CliRunner().invoke(app, ["status", "--json"]).output)["alerts"]
    assert (found["open"][0]["kind"], found["unsent"]) == ("overdue", 1)


# Secrets ------------------------------------------------------------------------------------------------------------

SECRET = "canary5ecret"


def said(world: World, caplog: pytest.LogCaptureFixture) -> str:
    """All that our side leaves behind in log and table."""
    lines = [entry.getMessage() + str(entry.exc_text or "") for entry in caplog.records if entry.name != "mail.log"]
    rows = [
        str(row)
        for table in ("alerts", "alert_receivers")
        for row in world.query(f"SELECT to_jsonb(a)::text FROM sync.{table} a")
    ]
    return "\n".join(lines + rows)


def test_webhook_with_secrets_uses_them_and_does_not_tell(
    world: World, absent: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused, answered with an error, and taken at last."""
    url = f"json://user:{SECRET}@{absent.place}/{SECRET}?+X-Token={SECRET}"
    tell(world)
    with caplog.at_level(logging.INFO):
        assert send(world, url) == 0
        absent.up()
        for absent.status in (401, 500, 200):
            world.advance_clock(MAX_REST_SECONDS)
            assert send(world, url) == (absent.status == 200)
            assert "overdue" in said(world, caplog)
            assert SECRET not in said(world, caplog)
    assert [headers["X-Token"] for headers in absent.headers] == [SECRET]


def test_a_mail_password_is_used_and_not_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for password in ("another", SECRET):
        server = MailServer(password)
        server.up()
        tell(world, cause=password.upper())
        with closed_at_the_end(server), caplog.at_level(logging.INFO):
            sent = send(world, f"mailto://user:{SECRET}@{server.place}?from=sync@example.org&to=oncall@example.org")
        assert (sent, server.attempts > 0) == (password == SECRET, True)
    assert SECRET not in said(world, caplog)


def test_an_unknown_address_is_not_shown_with_its_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    tell(world)
    for url in (f"slak://{SECRET}", f"nosuch://user@host/{SECRET}", f"slack://{SECRET}", SECRET):
        assert send(world, url) == 0
        world.advance_clock(MAX_REST_SECONDS)
    assert SECRET not in said(world, caplog)


def test_links_lead_to_the_ui_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNC_UI_URL", raising=False)
    assert AlertSettings().ui_url == "http://127.0.0.1:3000"
    monkeypatch.setenv("SYNC_UI_URL", "http://127.0.0.1:3131")
    assert AlertSettings().ui_url == "http://127.0.0.1:3131"
    assert AlertSettings(ui_url="https://dagster.example.org").ui_url == "https://dagster.example.org"


def test_settings_do_not_show_addresses() -> None:
    assert SECRET not in repr(AlertSettings(urls=[f"slack://{SECRET}"]))
    assert SECRET not in repr(list_receivers([f"slack://{SECRET}"]))


@pytest.mark.parametrize("urls", [SECRET, [{"slack": SECRET}], {"first": SECRET}, [SECRET, 5]])
def test_settings_that_are_wrong_do_not_show_addresses(urls: Any) -> None:
    with pytest.raises(ValidationError) as wrong:
        AlertSettings.model_validate({"urls": urls})
    assert SECRET not in str(wrong.value)
