"""The command line over a world of fakes: what it says, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from command_line import command as command
from fakes import answer, two_part_config
from sqlalchemy.engine import make_url
from typer.testing import CliRunner
from world import World

from sync_orchestrator import composition
from sync_orchestrator.cli import app
from sync_orchestrator.cli.terminal import make_safe_text
from sync_orchestrator.core.systems.heartbeats import end_heartbeat, record_heartbeat
from sync_orchestrator.supervisor import system as processes


def shell(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SYNC_")}
    return subprocess.run(
        [sys.executable, "-m", "sync_orchestrator", *words],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kill(world: World, key: str = "a") -> list[int]:
    """Makes a record whose events are dead, and returns their numbers."""
    world.erp.before = lambda verb, k: answer(422) if k == key else None
    world.put_record(key)
    world.run_drain()
    return [row.seq for row in world.query("SELECT seq FROM sync.events WHERE state = 'dead' ORDER BY seq")]


# Status -------------------------------------------------------------------------------------------------------------


def test_status_for_programs_is_one_object_with_the_promised_keys(world: World, command: Command) -> None:
    world.put_record("a")
    world.put_record("b")
    world.run_drain()
    world.put_record("c")
    found = json.loads(command("status", "--json").stdout)
    assert found["events"] == {
        "received": 6,
        "pending": 2,
        "leased": 0,
        "waiting": 0,
        "done": 4,
        "superseded": 0,
        "dead": 0,
        "discarded": 0,
        "duplicates": 0,
        "balanced": True,
    }
    assert (found["records"]["archived"], found["records"]["in_sync"]) == (2, 2)
    assert found["oldest_due_seconds"] > 0


def test_status_for_people_shows_what_is_wrong(world: World, command: Command) -> None:
    kill(world)
    said = command("status").stdout
    assert "item: answer 422" in said
    assert "The oldest due work" in said


def test_status_shows_streams_of_captured_changes(world: World, command: Command) -> None:
    world.query(
        "INSERT INTO sync.streams (name, identity, position, events, retained, behind, lost) "
        "VALUES ('shop', 'x', '0/10', 5, 1048576, 2, 'the replication slot is gone') RETURNING name"
    )
    found = json.loads(command("status", "--json").stdout)["streams"]["shop"]
    assert (found["position"], found["retained_bytes"], found["read"]) == ("0/10", 1024**2, False)
    assert (found["behind_seconds"], found["lost"]) == (2.0, "the replication slot is gone")
    for said in (command("status").stdout, command("capture", "list").stdout):
        assert "captured changes" in said
        assert "1.0 MiB" in said
        assert re.search(r"\b2 s\b", said)
        assert "no process reads it: run `sync-orchestrator capture`" in said
        assert "changes are missing: the replication slot is gone" in said


def test_what_stops_a_stream_now_comes_before_what_is_missing(world: World, command: Command) -> None:
    world.query(
        "INSERT INTO sync.streams (name, identity, position, lost, error, lease_until) VALUES ('shop', 'x', '0/10', "
        "'the slot is gone', 'there is no publication', sync.clock() + interval '1 hour') RETURNING name"
    )
    for said in (command("status").stdout, command("capture", "list").stdout):
        assert "there is no publication; changes are missing: the slot is gone" in said
        assert "no process reads it" not in said


def test_text_of_others_cannot_steer_the_terminal(world: World, command: Command) -> None:
    world.erp.before = lambda verb, key: type(answer(422))(answer(422).kind, "\x1b[2J[bold]no[/nonsense]\r\nway")
    world.put_record("a")
    world.run_drain()
    said = command("events", "list").stdout
    assert "\x1b" not in said
    assert "[bold]no[/nonsense]" in said


def test_bytes_are_shown_as_hex() -> None:
    assert (make_safe_text(b"\x01\xff").plain, make_safe_text(None).plain) == ("01ff", "")


# Events -------------------------------------------------------------------------------------------------------------


def test_dead_events_are_listed_shown_and_re_driven(world: World, command: Command) -> None:
    seqs = kill(world)
    world.put_record("b")
    rows = json.loads(command("events", "list", "--state", "dead", "--json").stdout)
    assert [(row["seq"], row["state"], row["due_at"]) for row in rows] == [(seq, "dead", None) for seq in seqs[::-1]]
    assert "answer 422" in command("events", "list", "--key", "a").stdout
    assert json.loads(command("events", "show", seqs[0]).stdout)["data"]["name"] == "n"
    world.erp.before = lambda verb, key: None
    assert command("events", "redrive", *seqs).stdout.splitlines()[0] == "2 events re-driven"
    assert command("drain").stdout.startswith("4 events done")
    assert world.mirror_by_key() == world.expected_mirror()
    assert json.loads(command("events", "show", seqs[0]).stdout)["state"] == "done"


def test_all_are_re_driven_only_when_that_is_said(world: World, command: Command) -> None:
    kill(world)
    assert command("events", "redrive").exit_code == 2
    assert command("events", "redrive", "--all", "--entity", "order").stdout == "0 events re-driven\n"
    assert command("events", "redrive", "--all").stdout.splitlines()[0] == "2 events re-driven"


def test_discard_needs_a_reason_and_a_dead_event(world: World, command: Command) -> None:
    seqs = kill(world)
    assert command("events", "discard", *seqs).exit_code == 2
    assert command("events", "discard", *seqs, "--reason", " ").exit_code == 2
    assert command("events", "discard", *seqs, "--reason", "a test record").stdout == "2 events discarded\n"
    assert json.loads(command("events", "show", seqs[0]).stdout)["reason"] == "a test record"
    assert command("events", "discard", *seqs, "--reason", "again").exit_code == 2


def test_nothing_to_list(command: Command) -> None:
    assert command("events", "list").stdout == "there are none\n"
    assert command("events", "list", "--state", "done").exit_code == 2


# Records ------------------------------------------------------------------------------------------------------------


def test_a_record_is_shown_and_reread(world: World, command: Command) -> None:
    world.put_record("a", name="first")
    world.run_drain()
    said = command("records", "show", "item", "a").stdout
    assert "acknowledged" in said
    assert "group_key         A\n" in said
    found = json.loads(command("records", "show", "item", "a", "--json").stdout)
    assert (found["record"]["revision"], len(found["events"]), len(found["pushes"])) == (2, 2, 1)
    world.put_record("a", name="second", notify=False)
    assert command("records", "refresh", "item", "a").stdout.startswith("shop: version ")
    command("drain")
    assert world.mirror_by_key()["a"]["name"] == "second"


def test_an_event_whose_record_is_not_here_is_shown(world: World, command: Command) -> None:
    world.post_event("shop", "a", "update", 7, {"store": "A"})
    assert "pending" in command("records", "show", "item", "a").stdout


# Full sync and validation -------------------------------------------------------------------------------------------


def test_full_sync_does_not_call_in_sync_what_it_passed_over(world: World, command: Command) -> None:
    world.put_record("a", notify=False)
    world.put_record("b\x00", notify=False)
    result = command("full-sync", "item")
    assert (result.exit_code, result.stdout.startswith("not finished: 1 business groups")) == (1, True)
    assert "A: 1 parts cannot be used and were passed over, such as 'b\\x00': a text holds NUL" in result.stderr


def test_full_sync_of_all_groups(world: World, command: Command) -> None:
    for number in range(6):
        world.put_record(f"k{number}", group="AB"[number % 2], notify=False)
    result = command("full-sync", "item")
    assert (result.exit_code, result.stdout) == (0, "all of it is in sync\n")
    assert sorted(result.stderr.splitlines()) == [
        "A: 3 listed, 3 changed, 0 deleted, 3 mirrored, 0 events tried again",
        "B: 3 listed, 3 changed, 0 deleted, 3 mirrored, 0 events tried again",
    ]
    assert world.mirror_by_key() == world.expected_mirror()


def test_full_sync_finishes_what_failed_meanwhile(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what must be asked for twice: an update of a record that its owner does not have."""
    world = make_world(entity={"retry": {"retries": 3, "first_wait": 0.1, "jitter": 0}, "absent_after": 0.1})
    monkeypatch.setattr(composition, "open_context", lambda **_: world.context)
    world.put_record("a", notify=False)
    world.post_event("shop", "a", "update", 5, {"name": "older", "store": "A"})
    world.post_event("shop", "gone", "update", 5, {"name": "gone", "store": "A"})
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 2}
    assert CliRunner().invoke(app, ["full-sync", "item"]).exit_code == 0
    assert world.count_events_by_state() == {"superseded": 2}


def test_full_sync_says_what_is_left(world: World, command: Command) -> None:
    world.put_record("a", notify=False)
    world.put_record("b", notify=False)
    world.erp.before = lambda verb, key: answer(422) if key == "b" else None
    result = command("full-sync", "item")
    assert (result.exit_code, result.stdout) == (
        1,
        "not in sync: 0 records are waiting and 1 failing (1: answer 422). Next: `sync-orchestrator records list "
        "item --dead` lists dead ones, `status` shows the third party\n",
    )


def test_one_group_that_fails_does_not_keep_the_others_from_theirs(world: World, command: Command) -> None:
    for number in range(20):
        world.put_record(f"a{number}", group="A", notify=False)
    world.run_full_sync("A")
    for number in range(15):
        world.shop.rows.pop(f"a{number}")
    world.put_record("b", group="B", notify=False)
    result = command("full-sync", "item")
    assert result.exit_code == 1
    assert "more than the cap" in result.stderr
    assert "b" in world.mirror_by_key()
    assert command("full-sync", "item", "--group", "A", "--allow-deletions", 15).exit_code == 0
    assert world.mirror_by_key() == world.expected_mirror()


def test_verify_tells_by_exit_status(world: World, command: Command) -> None:
    assert command("validate").exit_code == 2
    world.put_record("a", notify=False)
    world.put_record("b", notify=False)
    assert command("validate", "item", "--group", "A").exit_code == 2
    command("full-sync", "item")
    result = command("validate", "item", "--full")
    assert (result.exit_code, "in_sync" in result.stdout) == (0, True)
    world.erp.store.pop(world.read_record_row("a").external_id)
    result = command("validate", "--full", "--repair", "off", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["drift"]) == (1, [{"key": "a", "kind": "missing", "status": "found"}])
    nobody = command("validate", "--full").stdout
    assert "missing  marked for repair" in nobody
    assert (
        "1 differences are marked for repair, and nothing that pushes them runs: start `sync-orchestrator up`, or "
        "run `sync-orchestrator drain`"
    ) in nobody
    command("drain")
    world.erp.store.pop(world.read_record_row("a").external_id)
    record_heartbeat(world.engine, "sensor")
    assert "1 differences are marked for repair: a drain that runs pushes them" in command("validate", "--full").stdout
    end_heartbeat(world.engine, "sensor")
    command("drain")
    assert command("validate", "--full").exit_code == 0


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(world: World, command: Command) -> None:
    world.put_record("a", notify=False)
    world.put_record("[/]b", group="[/]", notify=False)
    assert "━" in command("full-sync", "item", FORCE_COLOR="1", COLUMNS="120").stderr
    assert sorted(command("validate").stderr.splitlines()) == ["item A: in_sync", "item [/]: in_sync"]


# Switches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["item", "erp"])
def test_pause_and_resume(world: World, command: Command, name: str) -> None:
    world.put_record("a")
    assert command("pause", name).stdout == f"pushes of {name} are paused\n"
    command("drain")
    assert (world.mirror_by_key(), world.read_record_row("a").revision) == ({}, 2)
    assert command("resume", name).exit_code == 0
    command("drain")
    assert world.mirror_by_key() == world.expected_mirror()


def test_epoch(command: Command) -> None:
    assert command("epoch", "shop").stdout.startswith("shop is in epoch 1 now")


@pytest.mark.parametrize(
    "words",
    [
        ("pause", "shop"),
        ("epoch", "erp"),
        ("epoch", "nobody"),
        ("validate", "order"),
        ("full-sync", "order"),
        ("records", "show", "item", "nothing"),
        ("records", "refresh", "order", "a"),
        ("events", "show", 1),
        ("events", "redrive"),
        ("validate", "--repair", "perhaps"),
    ],
)
def test_what_is_not_here_is_said_in_a_line(command: Command, words: tuple[object, ...]) -> None:
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(("error: ", "Usage: "))


# The real program ---------------------------------------------------------------------------------------------------


# Rollouts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def roll(world: World, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Commands of ``rollout`` over a route ``thing`` that goes two ways, and ``plain`` that does not."""
    both = {
        "path": "/things/{key}",
        "third_party": "erp",
        "call": {"path": "/"},
        "entity": "item",
        "legacy": {"base_url": "http://127.0.0.1:1"},
        "rollout": {"by_part": "key"},
    }
    plain = {"path": "/plain", "third_party": "erp", "call": {"path": "/"}}
    config = two_part_config(routes={"thing": both, "plain": plain})
    monkeypatch.setattr(composition, "load_config", lambda: config)
    return lambda *words, **environment: command("rollout", *words, **environment)


def test_a_share_is_set_and_who_did_it_is_shown(roll: Command, world: World) -> None:
    refused = roll("set", "thing", 5, "--why", "go")
    assert (refused.exit_code, "was ever validated" in refused.output) == (2, True)
    assert roll("set", "thing", 5, "--why", "go", "--override").exit_code == 0
    assert roll("shadow", "thing", "--why", "look").exit_code == 0
    world.put_record("a")
    world.run_drain()
    world.run_full_sync()
    world.run_validation()
    assert roll("allow", "thing", "x", "y", "--why", "friends").exit_code == 0
    assert roll("allow", "thing", "y", "--remove", "--why", "no friend").exit_code == 0
    assert roll("deny", "thing", "z", "--why", "not them").exit_code == 0
    shown = json.loads(roll("show", "thing", "--json").stdout)
    assert shown == {
        "route": "thing",
        "percent": 5,
        "shadow": True,
        "allow": ["x"],
        "deny": ["z"],
        "halted": False,
        "version": 5,
        "tried": 0,
        "failed": 0,
        "compared": 0,
        "different": 0,
    }
    changes = json.loads(roll("history", "thing", "--json").stdout)
    assert [change["why"] for change in changes] == ["not them", "no friend", "friends", "look", "go"]
    assert "was ever validated" in changes[-1]["overrode"]
    assert all(change["who"] for change in changes)
    [listed] = json.loads(roll("list", "--json").stdout)
    assert (listed["route"], listed["percent"]) == ("thing", 5)
    for words in (("list",), ("show", "thing"), ("history", "thing")):
        assert "thing" in roll(*words).output


@pytest.mark.parametrize(
    "words",
    [
        ("set", "plain", 5, "--why", "x"),
        ("show", "nothing"),
        ("history", "plain"),
        ("set", "thing", 5, "--why", " "),
        ("set", "thing", 5),
        ("set", "thing", 101, "--why", "x"),
        ("allow", "thing", "", "--why", "x"),
    ],
)
def test_rollouts_that_cannot_be(roll: Command, words: tuple[object, ...]) -> None:
    result = roll(*words)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


@pytest.fixture
def project() -> Iterator[Path]:
    """A folder with a configuration, not in pytest's, where the database's own user may be locked out."""
    folder = Path(tempfile.mkdtemp(prefix="sync-cli-"))
    settings = two_part_config().model_dump(mode="json", exclude_defaults=True)
    (folder / "sync.yaml").write_text(yaml.safe_dump(settings))
    yield folder
    shutil.rmtree(folder)


def test_check_of_a_good_and_a_bad_configuration(project: Path) -> None:
    said = shell("check", folder=project).stdout
    assert said.endswith("sync.yaml is in order: item\n")
    assert re.search(r"^item +shop, stock +erp +4 +15 m +1 d +$", said, re.MULTILINE)
    assert re.search(r"^erp +third party +rest +http://127.0.0.1:1 *$", said, re.MULTILINE)
    assert [system["role"] for system in json.loads(shell("check", "--json", folder=project).stdout)["systems"]] == [
        "source",
        "source",
        "third party",
    ]
    (project / "sync.yaml").write_text((project / "sync.yaml").read_text().replace("owner: shop", "owner: nobody"))
    result = shell("check", folder=project)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "owner 'nobody' is none of the parts" in result.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://user:canary@127.0.0.1:1/none", "error: the database: connection failed"),
        ("postgres://user:canary@127.0.0.1:1/none", "error: the database: connection failed"),
        ("canary", "error: SYNC_DATABASE_URL must be"),
        ("mysql://user:canary@127.0.0.1/none", "error: SYNC_DATABASE_URL must be"),
    ],
)
def test_database_that_cannot_be_reached_is_a_line_without_the_password(project: Path, url: str, said: str) -> None:
    result = shell("status", folder=project, SYNC_DATABASE_URL=url)
    assert result.returncode == 2
    assert result.stderr.startswith(said)
    assert len(result.stderr.splitlines()) == 1
    assert "canary" not in result.stderr


@pytest.mark.slow
def test_database_commands(project: Path) -> None:
    url = shell("db", "url", folder=project).stdout.strip()
    try:
        assert make_url(url).drivername == "postgresql"
        assert json.loads(shell("status", "--json", folder=project).stdout)["events"]["received"] == 0
    finally:
        assert shell("db", "stop", folder=project).stdout == "stopped\n"
    assert shell("db", "stop", folder=project).stdout == "it was not running\n"


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("events", "list"),
        ("events", "show", "1"),
        ("events", "redrive", "--all"),
        ("records", "show", "item", "a"),
        ("validate",),
        ("pause", "item"),
        ("epoch", "shop"),
        ("drain",),
    ],
)
def test_looking_makes_no_database(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(project)
    for name in ("SYNC_HOME", "SYNC_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"there is no database in {project / '.sync'}: " in result.stderr
    assert "export SYNC_HOME=FOLDER" in result.stderr
    assert not (project / ".sync").exists()


def test_a_database_near_by_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".sync" / "demo" / "postgres").mkdir(parents=True)
    (project / ".sync" / "demo" / "postgres" / "PG_VERSION").touch()
    monkeypatch.chdir(project)
    for name in ("SYNC_HOME", "SYNC_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, ["status"])
    assert f"export SYNC_HOME={project / '.sync' / 'demo'}; `sync-orchestrator up`" in result.stderr


def test_status_names_its_database_without_the_password(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SYNC_DATABASE_URL", "postgresql://user:canary@db.example.org/sync")
    said = command("status").stdout
    assert "postgresql://user:***@db.example.org/sync (SYNC_DATABASE_URL)" in said
    monkeypatch.delenv("SYNC_DATABASE_URL")
    monkeypatch.setenv("SYNC_HOME", str(tmp_path))
    assert f"the embedded one in {tmp_path / 'postgres'}" in command("status").stdout


def test_demo_that_is_not_here(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    result = command("demo")
    assert (result.exit_code, result.stderr) == (2, "error: the demo is not here: run this in a clone of the project\n")


def test_demo_gets_its_options(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "story.py").touch()
    monkeypatch.chdir(tmp_path)
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words[1:]))
    assert command("demo", "--fast", "3").exit_code == 0
    assert started == [["-m", "demo.story", "--fast", "3"]]
    assert processes.find_workspace() == tmp_path / "workspace.yaml"
