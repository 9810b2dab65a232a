"""What validation has found, taken away: as a table, as CSV and Parquet, and as a plot over time."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command_line import Command
from command_line import command as command
from scenes import alter_copy, sync_and_wait_a_second
from world import World

from sync_orchestrator.cli.drift_export import plot_drift, write_drift
from sync_orchestrator.core.validation import drift_log as found_drift
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.drift_log import COLUMNS, Chosen, OverTime, over_time, read_drift
from sync_orchestrator.errors import ConfigError

__all__ = ["command"]

KEYS = ("k000", "k001", "k002")


@pytest.fixture
def drifted(world: World) -> World:
    """Three records that somebody altered there; the first is repaired."""
    sync_and_wait_a_second(world)
    for key in KEYS:
        alter_copy(world, key, name="=1+1", count=10**20)
    world.run_validation(full=True, repair="ask")
    world.query("UPDATE sync.drift SET status = 'repaired', repaired_at = now() WHERE key = 'k000'")
    return world


def test_the_whole_list_is_written_a_row_a_field(drifted: World, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "drift.csv"
    assert command("drift", "item", "--to", path).stdout.strip() == f"{path}: 6 rows"
    with path.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [*rows[0]] == list(COLUMNS)
    assert sorted({(row["key"], row["kind"], row["status"]) for row in rows}) == [
        ("k000", "different", "repaired"),
        ("k001", "different", "found"),
        ("k002", "different", "found"),
    ]
    told = {row["field"]: (json.loads(row["ours"]), json.loads(row["theirs"])) for row in rows if row["key"] == "k001"}
    assert told == {"name": ("n", "=1+1"), "count": (drifted.stock.rows["k001"].data["count"], 10**20)}


def test_the_list_is_read_in_pieces_and_none_is_lost_between_them(
    drifted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_drift, "_BATCH_SIZE", 2)
    assert {row["key"] for row in read_drift(drifted.engine, Chosen())} == set(KEYS)


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [
        (Chosen(open=True), {"k001", "k002"}),
        (Chosen("item", "A"), set(KEYS)),
        (Chosen("item", "none"), set()),
        (Chosen(since=datetime.now(UTC) + timedelta(days=1)), set()),
        (Chosen("other"), set()),
    ],
)
def test_it_can_be_narrowed(drifted: World, chosen: Chosen, keys: set[str]) -> None:
    assert {row["key"] for row in read_drift(drifted.engine, chosen)} == keys


def test_a_table_shows_the_newest(drifted: World, command: Command) -> None:
    shown = command("drift", "--open").stdout
    assert "k002" in shown
    assert "k000" not in shown
    assert "--to FILE.csv" in shown
    assert "nothing was found" in command("drift", "--group", "none").stdout


def test_parquet_holds_the_same(drifted: World, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_drift(tmp_path / "drift.parquet", read_drift(drifted.engine, Chosen())) == 6
    rows = parquet.read_table(tmp_path / "drift.parquet").to_pylist()
    assert {row["key"] for row in rows} == set(KEYS)
    assert rows[0]["found_at"].tzinfo is not None


@pytest.mark.parametrize("name", ["drift.xlsx", "drift"])
def test_another_kind_of_file_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        write_drift(tmp_path / name, [])
    with pytest.raises(ConfigError, match=r"\.svg"):
        plot_drift(tmp_path / name, OverTime(timedelta(days=1), []))
    assert not (tmp_path / name).exists()


def test_the_plot_shows_each_kind_in_each_bucket(drifted: World, command: Command, tmp_path: Path) -> None:
    drifted.query("UPDATE sync.drift SET found_at = found_at - interval '3 days', kind = 'extra' WHERE key = 'k002'")
    found = over_time(drifted.engine, Chosen())
    assert found.width == timedelta(hours=1)
    counts = [counts for _, counts in found.buckets]
    assert (counts[0], counts[-1], len(counts)) == ({"extra": 1}, {"different": 2}, 73)
    path = tmp_path / "drift.svg"
    command("drift", "--plot", path)
    texts = [text for element in ET.parse(path).iter() if (text := element.text)]
    assert [text for text in texts if text in set(DriftKind)] == ["different", "extra"]
    assert sum(1 for text in texts if text.endswith(("extra: 1", "different: 2"))) == 2


def test_a_plot_of_nothing_says_so(world: World, command: Command, tmp_path: Path) -> None:
    command("drift", "--plot", tmp_path / "drift.svg")
    assert ": none" in (tmp_path / "drift.svg").read_text(encoding="utf-8")
