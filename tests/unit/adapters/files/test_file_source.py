"""File sources: rows one after the other, bad ones told with file and line, and nothing that looks like an empty group
where files are missing, half written or changed."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from file_sources import HEAD, keys, put, read, source
from http_server import failure_of
from pydantic import ValidationError

from sync_orchestrator.adapters.containment import ContainedSource
from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.adapters.files import rows as file_rows
from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.config import Config
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import Failure

BASE = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in microseconds

has_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


async def problems(found: FileSource, group: str = "A") -> list[tuple[str, str]]:
    return [(row.key, row.problem) for row in await read(found, group) if row.problem is not None]


# What is read.


async def test_csv(tmp_path: Path) -> None:
    """Texts stay texts, leading zeros too; quotes, commas and line breaks within a field; a byte order mark; no last
    line break; an empty line."""
    put(tmp_path, "a.csv", '\ufeffsku,store,v,name\r\n007,A,1,"a, ""b""\nc"\r\n\r\n8,B,2,\r\n9,A,3,é')
    found = source(tmp_path)
    assert await read(found) == [
        PartRead("007", 1, {"sku": "007", "store": "A", "v": "1", "name": 'a, "b"\nc'}, "A"),
        PartRead("9", 3, {"sku": "9", "store": "A", "v": "3", "name": "é"}, "A"),
    ]
    assert (await found.count("A"), await found.groups()) == (2, ["A", "B"])
    assert (found.can_read, found.keyset_listing, found.can_poll) == (False, False, False)
    await found.close()


async def test_csv_of_another_kind(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "sku;store;v;name\na;A;1;größer\n".encode("cp1252"))
    [row] = await read(source(tmp_path, files={"format": "csv", "delimiter": ";", "encoding": "cp1252"}))
    assert row.data["name"] == "größer"


async def test_json_lines(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", '{"sku": 1, "store": "A", "v": 1, "tags": [null]}\n\n{"sku": "b", "store": 7, "v": 2}\n')
    found = source(tmp_path)
    assert await read(found) == [PartRead("1", 1, {"sku": 1, "store": "A", "v": 1, "tags": [None]}, "A")]
    assert await keys(found, "7") == ["b"]


@has_pyarrow
async def test_parquet(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as arrow
    import pyarrow.parquet as parquet

    at = datetime.datetime(2026, 1, 1, 1)
    parquet.write_table(
        arrow.table(
            {
                "sku": ["a", "b", "c"],
                "store": ["A", "B", "A"],
                "v": arrow.array([at] * 3, arrow.timestamp("us")),
                "price": [decimal.Decimal("1.50")] * 3,
                "raw": [b"\xff"] * 3,
            }
        ),
        tmp_path / "a.parquet",
    )
    found = source(tmp_path, version={"path": "v"}, zone="Europe/Berlin", files={"page": 2})
    data = {"sku": "a", "store": "A", "v": "2026-01-01T00:00:00Z", "price": 1.5, "raw": "/w=="}
    assert await read(found) == [PartRead("a", BASE, data, "A"), PartRead("c", BASE, {**data, "sku": "c"}, "A")]
    put(tmp_path, "b.parquet", b"PAR1 and no more")
    failure = await failure_of(read(found))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail.startswith("b.parquet: ")


async def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    put(tmp_path, "a.parquet", "x")
    failure = await failure_of(read(source(tmp_path)))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail == (
        "a.parquet: A Parquet file needs the package pyarrow, which is not installed: "
        "pip install 'sync-orchestrator[parquet]'"
    )


async def test_several_files_in_their_order_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "b.csv", HEAD + "c,A,1,n\n")
    put(tmp_path, "a/x.csv", HEAD + "a,A,1,n\nb,A,1,n\n")
    put(tmp_path, "a/y.jsonl", '{"sku": "d", "store": "A", "v": 1}\n')
    put(tmp_path, "a/note.txt", "not of it")
    found = source(tmp_path, files={"glob": "**/*.*s*", "page": 2})
    assert [[row.key for row in rows] async for rows, _ in found.pages("A")] == [["a", "b"], ["d", "c"]]


async def test_groups_that_have_files_of_their_own(tmp_path: Path) -> None:
    """The row need not name its group; one that names another belongs there."""
    put(tmp_path, "A b/items-1.csv", "sku,v\na,1\n")
    put(tmp_path, "A b/items-2.csv", "sku,v,store\nb,1,\nc,1,other\n")
    put(tmp_path, "C*/items-1.csv", "sku,v\nd,1\n")
    found = source(tmp_path, files={"glob": "{{ group }}/items-*.csv"})
    assert await found.groups() == ["A b", "C*"]
    assert (await keys(found, "A b"), await keys(found, "C*")) == (["a", "b"], ["d"])
    for group in ("..", "a/b", "a\\b", "", "*"):
        assert (await failure_of(read(found, group))).kind is Failure.PERMANENT


async def test_versions_and_deletions(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "sku,store,v,gone\na,A,2026-01-01 01:00:00,no\nb,A,2026-01-01T00:00:00Z,yes\n")
    rows = await read(source(tmp_path, version={"path": "v"}, zone="Europe/Berlin", deleted_when="gone == 'yes'"))
    assert [(row.version, row.deleted) for row in rows] == [(BASE, False), (BASE, True)]


# Rows that cannot be used.


async def test_bad_rows_of_csv_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = ["a,A,1,n", "b,A,1", "c,A,1,n,more", "d,A,x,n", ",A,1,n", "e,,1,n", "g,B,1,n", "h,A,1,n"]
    put(tmp_path, "a.csv", HEAD + "\n".join(lines) + "\n")
    found = source(tmp_path)
    assert await keys(found) == ["a", "h"]
    assert await problems(found) == [
        ("", "it has 3 fields, the first line has 4 (a.csv:3)"),
        ("", "it has 5 fields, the first line has 4 (a.csv:4)"),
        ("d", "no version at 'v': 'x' is no whole number (a.csv:5)"),
        ("", "no key at 'sku' (a.csv:6)"),
        ("e", "no business group at 'store' (a.csv:7)"),
    ]
    assert await found.count("A") is None
    assert await found.groups() == ["A", "B"]


async def test_bad_rows_of_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"sku": "a", "store": "A", "v": 1}',
        "{",
        "[]",
        "[" * 100_000,
        '{"sku": {}, "store": "A", "v": 1}',
        '{"sku": "b", "store": ["A"], "v": 1}',
        '{"sku": "c", "store": "A", "v": 1}',
    ]
    put(tmp_path, "a.jsonl", "\n".join(lines))
    found = source(tmp_path)
    assert await keys(found) == ["a", "c"]
    told = await problems(found)
    assert [key for key, _ in told] == ["", "", "", "", "b"]
    assert [problem.rpartition("(")[2] for _, problem in told] == [f"a.jsonl:{n})" for n in range(2, 7)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
async def test_rows_in_another_encoding(tmp_path: Path, ending: str) -> None:
    rows = {
        "csv": ["a,A,1,n", "b,A,1,größer"],
        "jsonl": ['{"sku": "a", "store": "A", "v": 1}', '{"sku": "b", "store": "A", "v": 1, "name": "größer"}'],
    }
    head = HEAD if ending == "csv" else ""
    path = put(tmp_path, f"a.{ending}", (head + "\n".join(rows[ending])).encode("latin-1"))
    found = source(tmp_path)
    assert await keys(found) == ["a"]
    [(_, problem)] = await problems(found)
    assert problem == f"it is not utf-8 ({path.name}:{3 if head else 2})"


@pytest.mark.parametrize(
    ("encoding", "settings"), [("utf-16", {}), ("latin-1", {"encoding": "utf-16"}), ("utf-8", {"encoding": "utf-32"})]
)
async def test_files_in_another_encoding(tmp_path: Path, encoding: str, settings: dict[str, Any]) -> None:
    """Nothing of it is taken for a row, and it is no empty group."""
    put(tmp_path, "a.csv", (HEAD + "a,A,1,ä\n").encode(encoding))
    found = source(tmp_path, files=settings)
    failure = await failure_of(read(found))
    if encoding == "utf-16":  # read as UTF-8 it ends in half a line
        assert failure.detail.startswith("a.csv:3: it has 1 fields, the first line has 4")
    else:
        assert failure.kind is Failure.PERMANENT
        assert failure.detail.startswith("a.csv is not utf-")


async def test_a_quote_that_is_never_closed_ends_the_file(tmp_path: Path) -> None:
    """What a field takes up after it is a guess, and so is where the next row begins."""
    rows = [f"k{n},A,1,n\n" for n in range(30_000)]
    put(tmp_path, "a.csv", HEAD + 'a,A,1,n\nb,A,1,"open\n' + "".join(rows))
    for asked in (read(source(tmp_path)), source(tmp_path).count("A"), source(tmp_path).groups()):
        failure = await failure_of(asked)
        assert failure.kind is Failure.PERMANENT
        assert failure.detail == (
            "a.csv:3: field larger than field limit (131072): nothing from this line on is read; fix the file"
        )


async def test_keys_that_come_twice_are_counted_once(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", HEAD + "a,A,1,old\na,A,3,new\n")
    put(tmp_path, "b.csv", HEAD + "a,A,2,older\nb,A,1,n\n")
    found = source(tmp_path)
    assert sorted((row.key, row.data["name"]) for row in await read(found)) == [("a", "new"), ("b", "n")]
    assert await found.count("A") == 2


# What is no listing.


@pytest.mark.parametrize("glob", ["*.csv", "{{ group }}.csv", "none/*"])
async def test_no_file_is_no_empty_group(tmp_path: Path, glob: str) -> None:
    put(tmp_path, "a.txt", "x")
    found = source(tmp_path, files={"glob": glob})
    for call in (read(found), found.count("A"), found.groups()):
        failure = await failure_of(call)
        assert failure.kind is Failure.PERMANENT
        assert failure.detail.startswith("no file matches ")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
async def test_an_empty_file_is_no_empty_group(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "")
    failure = await failure_of(read(source(tmp_path)))
    assert (failure.kind, failure.detail) == (Failure.TRANSIENT, f"{name} is empty: is it being written?")


@pytest.mark.parametrize("change", ["grows", "is replaced", "goes"])
async def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    path = put(tmp_path, "a.csv", HEAD + "a,A,1,n\nb,A,1,n\n")
    pages = source(tmp_path, files={"page": 1}).pages("A")
    assert (await anext(pages))[0][0].key == "a"
    if change == "grows":
        put(tmp_path, "a.csv", HEAD + "a,A,1,n\nb,A,1,n\nc,A,1,n\n")
    elif change == "is replaced":
        os.replace(put(tmp_path, "a.new", HEAD + "x,A,1,n\ny,A,1,n\n"), path)
    else:
        os.remove(path)
    assert (await failure_of(_rest(pages))).kind is Failure.TRANSIENT


async def _rest(pages: Any) -> list[Any]:
    return [page async for page in pages]


async def test_names_of_fields_that_cannot_be_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "sku,store,v,sku\na,A,1,b\n")
    failure = await failure_of(read(source(tmp_path)))
    assert (failure.kind, failure.detail) == (Failure.PERMANENT, "a.csv:1: two fields are called 'sku'")


async def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    """A header that changed must not look like rows without keys only."""
    put(tmp_path, "a.csv", "SKU,store,v\na,A,1\n")
    found = source(tmp_path)
    assert await problems(found) == [("", "no key at 'sku' (a.csv:2)")]
    assert await found.count("A") is None


async def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    put(tmp_path, "a.xlsx", "x")
    failure = await failure_of(read(source(tmp_path)))
    assert failure.detail == "a.xlsx: what kind of file is it? say files.format"


async def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_rows, "_MAX_LINE_BYTES", 100)
    put(tmp_path, "a.jsonl", '{"sku": "a", "store": "A", "v": 1}\n' + "x" * 1000)
    failure = await failure_of(read(source(tmp_path)))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail.startswith("a.jsonl:2: the line is longer than 100 characters")


# How it is read.


async def test_a_reading_that_is_broken_off_lets_go_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is cancelled while a thread is in the file."""
    put(tmp_path, "a.csv", HEAD + "a,A,1,n\nb,A,1,n\n")
    pages = source(tmp_path, files={"page": 1}).pages("A")
    await anext(pages)
    await pages.aclose()  # type: ignore[attr-defined]
    inside, free = threading.Event(), threading.Event()
    real = file_rows._stat_file

    def seen(path: Path) -> Any:
        inside.set()
        free.wait(20)
        return real(path)

    monkeypatch.setattr(file_rows, "_stat_file", seen)
    task = asyncio.create_task(read(source(tmp_path)))
    await asyncio.to_thread(inside.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    free.set()


# By configuration, and through the whole.


def config(**changes: Any) -> Config:
    return Config.model_validate(
        {
            "sources": {"dump": {"kind": "files", "folder": "exports"}},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
            "entities": {
                "item": {
                    "owner": "dump",
                    "mapping": {"code": "key"},
                    "parts": {
                        "dump": {
                            "key": "sku",
                            "version": {"path": "v"},
                            "group": "store",
                            "files": {"glob": "*.csv"},
                            **changes,
                        }
                    },
                    "third_party": {
                        "system": "erp",
                        "ids": "ours",
                        "key_field": "code",
                        "read": {"path": "/{{ id }}"},
                        "list": {"path": "/"},
                        "update": {"method": "PUT", "path": "/{{ id }}"},
                        "delete": {"method": "DELETE", "path": "/{{ id }}"},
                    },
                }
            },
        }
    )


def test_a_source_by_configuration() -> None:
    source = build_sources(config())["item"]["dump"]
    assert isinstance(source, ContainedSource)
    assert isinstance(source.inner, FileSource)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": None}, "'files' is needed"),
        ({"sql": {"table": "x"}}, "'sql' does not belong"),
        ({"read": {"path": "/"}}, "'read' is a call"),
        ({"files": {"glob": "{{ shop }}"}}, "only 'group' is known here"),
        ({"files": {"glob": "*", "encoding": "latin-99"}}, "there is no encoding 'latin-99'"),
        ({"files": {"glob": "*", "delimiter": ";;"}}, "at most 1 character"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config(**changes)


@pytest.mark.parametrize("change", ["came", "went", "was written", "all went"])
async def test_files_that_come_go_or_change_meanwhile_are_noticed(tmp_path: Path, change: str) -> None:
    put(tmp_path, "a.csv", HEAD + "k1,A,1,n\n")
    put(tmp_path, "c.csv", HEAD + "k3,A,1,n\n")
    found = source(tmp_path, files={"page": 1})
    pages = found.pages("A")
    await anext(pages)
    if change == "came":
        put(tmp_path, "b.csv", HEAD + "k2,A,1,n\n")
    else:
        await anext(pages)
        if change == "was written":
            put(tmp_path, "a.csv", HEAD + "k1,A,2,n\n")
        else:
            (tmp_path / "a.csv").unlink()
        if change == "all went":
            (tmp_path / "c.csv").unlink()

    async def rest() -> None:
        async for _ in pages:
            pass

    failure = await failure_of(rest())
    assert failure.kind is Failure.TRANSIENT
    told = {"came": "b.csv came while", "all went": "c.csv is gone"}.get(change, f"a.csv {change} while the others")
    assert told in failure.detail


# Links ---------------------------------------------------------------------------------------------------------------

ROW = HEAD + "a,A,1,x\n"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The source's folder, and one beside it."""
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
    return tmp_path / "inside", tmp_path / "outside"


async def refused(found: FileSource, file: str) -> None:
    """All ways to read the source refuse the file."""
    ways: list[Callable[[], Any]] = [
        lambda: read(found),
        lambda: found.count("A"),
        lambda: found.groups(),
        lambda: found.repeated("A"),
        lambda: found.ungrouped(),
    ]
    for way in ways:
        failure = await failure_of(way())
        assert failure.kind is Failure.PERMANENT
        assert file in failure.detail
        assert "leads out of the source's folder" in failure.detail
        assert "Put a copy of the file in" in failure.detail


@pytest.mark.parametrize("kind", ["absolute", "relative", "through a link inside", "hidden behind two links"])
async def test_a_link_to_a_file_outside_of_the_folder_is_refused(folders: tuple[Path, Path], kind: str) -> None:
    inside, outside = folders
    target = put(outside, "secret.csv", ROW)
    put(inside, "a.csv", ROW.replace("a,", "b,"))
    link = inside / "x.csv"
    if kind == "absolute":
        link.symlink_to(target)
    elif kind == "relative":
        link.symlink_to("../outside/secret.csv")
    elif kind == "through a link inside":
        (inside / "sub.data").symlink_to(outside)
        link.symlink_to("sub.data/secret.csv")
    else:
        (inside / "y.data").symlink_to(target)
        link.symlink_to("y.data")
    await refused(source(inside, files={"glob": "*.csv"}), "x.csv")


@pytest.mark.parametrize("glob", ["**/*.csv", "*/*.csv", "linked/secret.csv"])
async def test_a_linked_folder_outside_is_refused(folders: tuple[Path, Path], glob: str) -> None:
    inside, outside = folders
    put(outside, "secret.csv", ROW)
    (inside / "linked").symlink_to(outside)
    await refused(source(inside, files={"glob": glob}), "secret.csv")


@pytest.mark.parametrize("glob", ["../outside/*.csv", "*/../../outside/*.csv", "{absolute}/*.csv"])
async def test_a_glob_that_leads_out_of_the_folder_is_refused(folders: tuple[Path, Path], glob: str) -> None:
    inside, outside = folders
    put(outside, "secret.csv", ROW)
    put(inside, "sub/a.csv", ROW)
    found = source(inside, files={"glob": glob.replace("{absolute}", str(outside))})
    assert "leads out of the source's folder" in (await failure_of(read(found))).detail


async def test_a_folder_whose_name_begins_as_the_source_s_is_outside(tmp_path: Path) -> None:
    put(tmp_path, "inside-too/secret.csv", ROW)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "x.csv").symlink_to(tmp_path / "inside-too" / "secret.csv")
    await refused(source(tmp_path / "inside"), "x.csv")


@has_pyarrow
async def test_a_link_to_parquet_outside_is_refused(folders: tuple[Path, Path]) -> None:
    import pyarrow
    from pyarrow import parquet

    inside, outside = folders
    parquet.write_table(pyarrow.table({"sku": ["a"], "store": ["A"], "v": [1]}), outside / "secret.parquet")
    (inside / "x.parquet").symlink_to(outside / "secret.parquet")
    await refused(source(inside), "x.parquet")


async def test_links_inside_of_the_folder_are_followed(tmp_path: Path) -> None:
    """The folder may be a link itself."""
    put(tmp_path, "real/data/a.csv", ROW)
    (tmp_path / "real" / "b.csv").symlink_to("data/a.csv")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    assert await keys(source(tmp_path / "folder", files={"glob": "b.csv"})) == ["a"]


async def test_a_link_that_is_exchanged_before_the_file_is_opened_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = folders
    target = put(outside, "secret.csv", ROW)
    path = put(inside, "x.csv", ROW)
    seen = file_rows._stat_file

    def exchange(file: Path) -> tuple[int, int, int]:
        found = seen(file)
        path.unlink()
        path.symlink_to(target)
        return found

    monkeypatch.setattr(file_rows, "_stat_file", exchange)
    failure = await failure_of(read(source(inside)))
    assert "leads out of the source's folder" in failure.detail
