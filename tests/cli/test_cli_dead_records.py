"""``records list``, ``redrive`` and ``discard``; ``validate`` and ``status`` where records are dead."""

from __future__ import annotations

import json

import pytest
from command_line import Command
from command_line import command as command
from dead_records import accept_all, dead_by_events, dead_by_full_sync, refuse, unreadable_change
from scenes import fill_sources
from typer.testing import Result
from world import World

from sync_orchestrator.core.notifications.alert_messages import ACTIONS


def rows_of(result: Result) -> list[dict[str, object]]:
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_dead_records_are_listed_whatever_brought_them(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001")
    said = command("records", "list", "item", "--dead").stdout
    assert all(text in said for text in ("k001", "answer 422", "full sync", "dead"))
    [row] = rows_of(command("records", "list", "--json"))
    assert (row["key"], row["group"], row["kind"], row["state"], row["cause"], row["error"], row["brought_by"]) == (
        "k001",
        "A",
        "record",
        "dead",
        "answer 422",
        "answer 422",
        "full sync",
    )
    assert rows_of(command("records", "list", "item", "--group", "B", "--json")) == []
    assert rows_of(command("records", "list", "other", "--json")) == []
    assert command("records", "list", "item", "--cause", "answer 409").stdout == "there are none\n"


def test_more_dead_records_than_the_limit(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001", "k002", "k003")
    said = command("records", "list", "--limit", "2").stdout
    assert ("k002" in said, "k003" in said, "--limit shows them" in said) == (True, False, True)


def test_records_are_redriven_only_when_it_is_said_which(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001", "k002")
    assert command("records", "redrive", "item").exit_code == 2
    assert command("records", "redrive", "item", "k001", "--all").exit_code == 2
    assert command("records", "redrive", "item", "--all", "--absent").exit_code == 2
    assert command("records", "redrive", "item", "k001").stdout.splitlines() == [
        "1 records redriven",
        "they are due, and nothing that pushes them runs: start `sync-orchestrator up`, or run "
        "`sync-orchestrator drain`",
    ]
    assert command("records", "redrive", "item", "--cause", "answer 422", "--group", "A").stdout.startswith(
        "1 records redriven\n"
    )
    assert command("records", "redrive", "item", "--all").stdout == "0 records redriven\n"
    command("drain")
    assert world.mirror_by_key() == world.expected_mirror()
    assert command("records", "list").stdout == "there are none\n"


def test_records_are_discarded_with_a_reason_and_many_after_a_prompt(
    world: World,
    command: Command,
) -> None:
    dead_by_full_sync(world, "k001", "k002", "k003")
    assert command("records", "discard", "item", "k001").exit_code == 2
    assert command("records", "discard", "item", "--reason", "x").exit_code == 2
    assert command("records", "discard", "item", "k001", "--reason", "a test").stdout == "1 records discarded\n"
    assert command("records", "discard", "item", "--all", "--reason", "a test").exit_code == 1
    assert len(rows_of(command("records", "list", "--json"))) == 2
    assert "2 records discarded" in command("records", "discard", "item", "--all", "--reason", "old", "--yes").stdout
    assert {(row["key"], row["error"]) for row in rows_of(command("records", "list", "--discarded", "--json"))} == {
        ("k001", "a test"),
        ("k002", "old"),
        ("k003", "old"),
    }
    assert command("records", "discard", "item", "k001", "--reason", "again").exit_code == 2


def test_verify_ends_with_1_while_records_are_dead(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001")
    for options in ([], ["--full"]):
        result = command("validate", "item", *options)
        assert result.exit_code == 1
        assert all(text in result.stdout for text in ("1 record is dead", "k001", "records list item --dead"))
    told = json.loads(command("validate", "item", "--json").stdout)
    assert (told["verdict"], told["dead"], told["in_flight"], told["dead_records"][0]["key"]) == ("drift", 1, 0, "k001")
    command("records", "discard", "item", "k001", "--reason", "a test")
    result = command("validate", "item", "--json")
    assert (result.exit_code, json.loads(result.stdout)["discarded"]) == (0, 1)


def test_verify_ends_with_1_for_a_dead_change_without_a_group(world: World, command: Command) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    unreadable_change(world, "new")
    result = command("validate", "item")
    assert (result.exit_code, "without a known business group" in result.stdout) == (1, True)
    assert command("validate", "item", "--group", "A").exit_code == 0
    [row] = rows_of(command("records", "list", "--json"))
    assert (row["kind"], row["group"], row["brought_by"]) == ("event", None, f"event {row['event_seq']}")


def test_repair_does_not_call_a_group_with_dead_records_in_sync(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001")
    assert command("repair", "item", "--group", "A").exit_code == 1


def test_a_full_sync_ends_with_0_once_what_is_left_was_discarded(world: World, command: Command) -> None:
    dead_by_full_sync(world, "k001")
    refuse(world, "k001")
    assert command("full-sync", "item", "--group", "A").exit_code == 1
    command("records", "discard", "item", "k001", "--reason", "a test")
    assert command("full-sync", "item", "--group", "A").exit_code == 0
    assert "discarded" in command("plan", "item", "--group", "A").stdout


def test_status_names_what_is_dead(world: World, command: Command) -> None:
    dead_by_events(world, "a")
    said = command("status").stdout
    assert "dead and discarded records" in said
    [row] = json.loads(command("status", "--json").stdout)["dead"]
    assert (row["entity"], row["state"], row["cause"], row["count"]) == ("item", "dead", "answer 422", 1)


@pytest.mark.parametrize("kind", ["dead", "on_hold"])
def test_alerts_point_to_the_command_that_lists_the_records(kind: str) -> None:
    assert "sync-orchestrator records list --dead" in ACTIONS[kind]


def test_the_events_commands_agree_with_the_records_commands(world: World, command: Command) -> None:
    dead_by_events(world, "a")
    seqs = [row["seq"] for row in rows_of(command("events", "list", "--state", "dead", "--json"))]
    [row] = rows_of(command("records", "list", "--json"))
    assert row["event_seq"] == max(int(str(seq)) for seq in seqs)
    command("records", "redrive", "item", "a")
    assert rows_of(command("events", "list", "--state", "dead", "--json")) == []
    accept_all(world)
    assert command("records", "push", "item", "a").exit_code == 0
    assert rows_of(command("records", "list", "--json")) == []
    assert json.loads(command("records", "show", "item", "a", "--json").stdout)["record"]["stopped_at"] is None
