"""Rule 36: after a parse error nothing is guessed: the file, page or batch ends there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from http_server import Server, failure_of
from starlette.requests import Request
from starlette.responses import Response
from world import World

from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import FileSourceSettings
from sync_orchestrator.errors import CallFailed, Failure

HEAD = "key,store,v,name\n"


def part(**changes: Any) -> PartSettings:
    return PartSettings.model_validate(
        {"key": "key", "version": {"path": "v", "kind": "number"}, "group": "store", **changes}
    )


def source(folder: Path) -> FileSource:
    return FileSource(
        FileSourceSettings.model_validate({"kind": "files", "folder": str(folder)}), part(files={"glob": "*"})
    )


async def keys(found: FileSource) -> list[str]:
    return [row.key async for rows, _ in found.pages("A") for row in rows]


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        pytest.param(
            'a,A,1,n\nb,A,1,"n"x\nc,A,1,n\n',
            Failure.PERMANENT,
            "a.csv:3: ',' expected after '\"': nothing from this line on is read; fix the file",
            id="a stray quote",
        ),
        pytest.param(
            'a,A,1,n\nb,A,1,"12" pipe"\nc,A,1,n\n',
            Failure.PERMANENT,
            "a.csv:3: ',' expected after '\"'",
            id="a quote that is not doubled",
        ),
        pytest.param(
            'a,A,1,n\nb,A,1,"open\nc,A,1,"n"\nd,A,1,n\n',
            Failure.PERMANENT,
            "a.csv:3: ',' expected after '\"'",
            id="a quote that the next row closes",
        ),
        pytest.param(
            'a,A,1,n\nb,A,1,"open\nc,A,1,n\n',
            Failure.TRANSIENT,
            "a.csv:3: unexpected end of data: the file ends in the midst of a row; is it still being written?",
            id="a quote that nothing closes",
        ),
        pytest.param(
            "a,A,1,n\nb,A",
            Failure.TRANSIENT,
            "a.csv:3: it has 2 fields, the first line has 4: the file ends in the midst of a row",
            id="cut off",
        ),
    ],
)
async def test_rule_36_csv_ends_where_it_cannot_be_parsed(
    tmp_path: Path, content: str, kind: Failure, says: str
) -> None:
    (tmp_path / "a.csv").write_text(HEAD + content)
    for asked in (keys(source(tmp_path)), source(tmp_path).count("A"), source(tmp_path).groups()):
        failure = await failure_of(asked)
        assert failure.kind is kind
        assert failure.detail.startswith(says)


async def test_rule_36_a_row_of_another_length_is_a_row_and_no_guess(tmp_path: Path) -> None:
    """Where it ends is certain: it is told, its key counts as unknown, and nothing is deleted."""
    (tmp_path / "a.csv").write_text(HEAD + "a,A,1,n\nb,A,1,one, two\nc,A,1,n\nd,A\n")
    found = source(tmp_path)
    assert await keys(found) == ["a", "", "c", ""]
    assert await found.count("A") is None


@pytest.mark.parametrize("tail", ['{"key": "b", "store": "A"', '{"key": "b", "store": "A", "v": 1} {', '{"key": "b'])
async def test_rule_36_json_lines_that_end_in_a_row_are_not_complete(tmp_path: Path, tail: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"key": "a", "store": "A", "v": 1}\n' + tail)
    failure = await failure_of(keys(source(tmp_path)))
    assert failure.kind is Failure.TRANSIENT
    assert failure.detail.startswith("a.jsonl:2: it is not JSON: ")
    assert failure.detail.endswith("the file ends in the midst of a row; is it still being written?")


@pytest.mark.parametrize("line", ["{", '{"key": "b"} {"key": "c"}', "nothing", '{"key": "b", "v": 1e999}'])
async def test_rule_36_a_line_that_is_no_json_is_a_row_and_no_guess(tmp_path: Path, line: str) -> None:
    first, last = (f'{{"key": "{key}", "store": "A", "v": 1}}\n' for key in "ac")
    (tmp_path / "a.jsonl").write_text(f"{first}{line}\n{last}")
    found = source(tmp_path)
    assert await keys(found) == ["a", "", "c"]
    assert await found.count("A") is None


async def test_rule_36_a_last_row_without_a_line_break_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + "a,A,1,n\nb,A,1,n")
    (tmp_path / "b.jsonl").write_text('{"key": "c", "store": "A", "v": 1}')
    assert await keys(source(tmp_path)) == ["a", "b", "c"]


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("cut", [1, 20, 200])
async def test_rule_36_parquet_that_is_cut_off_is_no_file(tmp_path: Path, cut: int) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"key": ["a"], "store": ["A"], "v": [1]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-cut])
    assert (await failure_of(keys(source(tmp_path)))).detail.startswith("a.parquet: ")


@pytest.mark.parametrize(
    "content",
    [
        b'[{"key": "a", "store": "A", "v": 1}] trailing',
        b'[{"key": "a", "store": "A", "v": 1}][]',
        b'[{"key": "a", "store": "A", "v": 1}',
        b'[{"key": "a", "store": "A", "v": 1}, ]',
        b'[{"key": "a", "v": NaN}]',
    ],
)
async def test_rule_36_a_page_with_more_or_less_than_json_is_none(server: Server, content: bytes) -> None:
    async def handler(request: Request) -> Response:
        return Response(content, media_type="application/json")

    server.handler = handler
    found = RestSource(HttpClient(HttpSettings(base_url=server.url, timeout=2)), part(list={"path": "/"}))
    with pytest.raises(CallFailed, match="the answer is not JSON"):
        async for _ in found.pages("A"):
            pass
    await found.close()


@pytest.mark.parametrize("broken", ['k1,A,2,"open\nk2,A,2,n\n', 'k1,A,2,n\nk2,A,2,"n"x\n', "k1,A,2,n\nk2,A"])
def test_rule_36_a_broken_file_deletes_nothing(world: World, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEAD + "".join(f"k{number},A,1,n\n" for number in range(6)))
    world.context.entities["item"].sources["shop"] = source(tmp_path)
    for number in range(6):
        world.stock.put(f"k{number}", {"key": f"k{number}", "count": 1, "v": 0})
    world.run_full_sync()
    assert len(world.erp.store) == 6
    path.write_text(HEAD + broken)
    with pytest.raises(CallFailed, match=r"a\.csv:[23]: "):
        world.run_full_sync()
    assert len(world.erp.store) == 6
