"""Rule 34: digits are kept. A number goes from source to third party as it was written, or is refused by name."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_store import THEIRS, HttpWorld
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import encode_content
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.api.lookups import ExactJson
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.config.sources import FileSourceSettings, SqlSourceSettings
from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.db.session import to_jsonb as jsonb
from sync_orchestrator.core.values.mapping import Mapping, compute_digest, to_canonical_json
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.core.values.storable import find_storage_problem
from sync_orchestrator.errors import InvalidEvent, MappingFailed
from sync_orchestrator.event_formats.strict_json import parse as parse_event
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.selectors import compile_selector

LONG, TINY = "1234567890.123456789", "0.1000000000000000055"

digits = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
documents = st.recursive(
    digits | texts.map(json.dumps) | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")
        | st.dictionaries(texts.map(json.dumps), inner, max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs.items()) + "}"
        )
    ),
    max_leaves=8,
)
ON_ONE_DATABASE = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def exactly(text: str | bytes) -> Any:
    """A document whose numbers are all decimals."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@ON_ONE_DATABASE
@given(text=documents)
def test_rule_34_a_document_arrives_digit_by_digit(engine: Engine, text: str) -> None:
    """Parsed, archived as jsonb, loaded, mapped, encoded, put into a template and written."""
    for parsed in (exact_json.parse(text.encode()), parse_event(text.encode()), exact_json.parse_text(text)):
        assert find_storage_problem({"v": parsed}) is None
        with engine.begin() as connection:
            [row] = run(connection, "SELECT %(v)s::jsonb AS v", v=jsonb({"v": parsed}))
        payload = Mapping({"f": "shop.v"}).build_payload("k", "A", {"shop": row.v})
        assert compute_digest(payload) == compute_digest({"f": parsed})
        encoded = Codecs({}, ("f",)).encode(payload)
        body = templates.render_value({"in": ["{{ payload }}"]}, {"payload": encoded})
        content = encode_content(Call(method="POST", path="/"), {}, body)["content"]
        assert exactly(content) == {"in": [{"f": exactly(text)}]}
        assert exactly(exact_json.dump_text(parsed)) == exactly(text)
        assert exactly(to_canonical_json(parsed)) == exactly(text)


@given(one=digits, other=digits)
def test_rule_34_equal_numbers_have_equal_digests_and_others_have_not(one: str, other: str) -> None:
    first, second = exact_json.parse(one.encode()), exact_json.parse(other.encode())
    assert (compute_digest(first) == compute_digest(second)) is (Decimal(one) == Decimal(other))
    assert compute_digest(Decimal(one)) == compute_digest(first)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0.1", float),
        ("1e2", float),
        ("1.0", float),
        ("1e23", float),
        ("0.1000000000000000055", Decimal),
        ("9007199254740993.0", Decimal),
        ("1234567890.123456789", Decimal),
        ("1e-400", Decimal),
        ("7", int),
        ("99999999999999999999", int),
        ("123456789012345678e-3", Decimal),
        ("-0.0", float),
        ("1.5E+10", float),
    ],
)
def test_rule_34_a_number_is_a_float_only_where_that_is_the_number(text: str, kind: type) -> None:
    for found in (exact_json.parse(text.encode()), exact_json.parse_text(text), parse_event(text.encode())):
        assert type(found) is kind
        assert (Decimal(repr(found)) if kind is float else found) == Decimal(text)


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1e-401", "NaN", "Infinity", "0." + "1" * 401])
def test_rule_34_numbers_of_absurd_size_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a number|not JSON"):
        exact_json.parse(text.encode())
    with pytest.raises(ValueError, match=r"a number|not JSON"):
        exact_json.parse_text(text)
    with pytest.raises(InvalidEvent, match=r"a number|not JSON"):
        parse_event(text.encode())


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), Decimal("1E+500"), Decimal("1E-500")])
def test_rule_34_a_decimal_that_is_no_number_of_json_is_refused(value: Decimal) -> None:
    assert find_storage_problem({"v": value}) in ("a number is not finite", "a number has too many digits")
    with pytest.raises(ValueError, match="a number"):
        exact_json.dumps({"v": value})
    assert as_json(value) == str(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [None, Decimal(LONG), 1.5, 2**70, "ü"],
        {"b": Decimal("1E+3"), "a": [{}, [], ()]},
        {1: True, "2": None},
        "\ud800",
    ],
)
@pytest.mark.parametrize("manner", [{}, {"indent": 2}, {"spaced": True}, {"ascii_only": True}])
def test_rule_34_decimals_are_written_as_the_standard_library_writes_the_rest(value: Any, manner: Any) -> None:
    written = exact_json.dump_text(value, **manner)
    plain = json.dumps(
        value,
        default=lambda found: "@" + exact_json.format_decimal(found) + "@",
        indent=manner.get("indent"),
        ensure_ascii="ascii_only" in manner,
        separators=(", " if "spaced" in manner else ",", ": " if manner.keys() & {"spaced", "indent"} else ":"),
    )
    assert written == plain.replace('"@', "").replace('@"', "")


# Expressions and templates.


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("rate", Decimal(TINY)),
        ("lines[0].rate", Decimal(TINY)),
        ("rate > `0.1`", False),
        ("price > `1234567890.1`", True),
        ("price < `2000000000`", True),
        ("rate == rate", True),
        ("to_string(rate)", TINY),
        ("to_string([rate, name])", f'[{TINY},"n"]'),
        ("to_number(text)", Decimal(TINY)),
        ("to_number('12')", 12),
        ("to_number('1_000')", None),
        ("to_number('nan')", None),
        ("type(rate)", "number"),
        ("sum([rate, `1`])", Decimal("1.1000000000000000055")),
        ("sum([`0.5`, `1`])", 1.5),
        ("avg([rate, rate])", Decimal(TINY)),
        ("max([rate, `0.05`])", Decimal(TINY)),
        ("sort([rate, `0.05`])", [0.05, Decimal(TINY)]),
        ("max_by(lines, &rate).name", "n"),
        ("abs(rate)", Decimal(TINY)),
        ("ceil(price)", 1234567891),
        ("lines[?rate > `0.01`].name", ["n"]),
        ("{a: rate}", {"a": Decimal(TINY)}),
    ],
)
def test_rule_34_expressions_work_with_decimals(expression: str, found: Any) -> None:
    line = {"rate": Decimal(TINY), "name": "n"}
    document = {**line, "price": Decimal(LONG), "text": TINY, "lines": [line]}
    assert compile_selector(expression).search(document) == found


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ v }}", Decimal(LONG)),
        ("{{ v }} EUR", f"{LONG} EUR"),
        ("{{ v | tojson }}!", f"{LONG}!"),
        ("{{ [v] }}", [Decimal(LONG)]),
        ("{{ v | round(2) }}", 1234567890.12),
        ("{{ v + 1 }}", Decimal(LONG) + 1),
        ("{{ 'more' if v > 5 else 'less' }}", "more"),
    ],
)
def test_rule_34_templates_put_decimals_in(template: str, found: Any) -> None:
    assert templates.render_value(template, {"v": Decimal(LONG)}) == found
    assert templates.render_path("/a/{{ v }}", {"v": Decimal(LONG)}) == f"/a/{LONG}"


# Codecs.


@pytest.mark.parametrize(
    ("codec", "ours", "theirs"),
    [
        ({}, Decimal(LONG), Decimal(LONG)),
        ({"kind": "decimal_text", "digits": 9}, Decimal(LONG), LONG),
        ({"kind": "decimal_text", "digits": 9}, Decimal("1.5"), "1.500000000"),
        ({"kind": "minor_units", "digits": 9}, Decimal(LONG), 1234567890123456789),
        ({"kind": "text"}, Decimal(TINY), TINY),
        ({"kind": "text"}, Decimal("7.00"), "7"),
        ({"kind": "number"}, TINY, Decimal(TINY)),
        ({"write": {"amount": "{{ value }}"}}, Decimal(LONG), {"amount": Decimal(LONG)}),
    ],
)
def test_rule_34_codecs_keep_digits(codec: Any, ours: Any, theirs: Any) -> None:
    both = Codecs({"f": CodecSettings.model_validate(codec)}, ("f",))
    written = both.encode({"f": ours})
    assert written == {"f": theirs}
    shown = exact_json.parse(exact_json.dumps(written))
    assert compute_digest(both.decode(shown)) == compute_digest({"f": ours})


@pytest.mark.parametrize(
    ("codec", "why"),
    [
        (
            {"kind": "decimal_text", "digits": 9},
            f"fields.f: {TINY} cannot be written as decimal_text: it would come back",
        ),
        ({"kind": "minor_units"}, f"fields.f: {TINY} cannot be written as minor_units: it would come back as"),
        ({"kind": "bool_number"}, "it is no truth value"),
    ],
)
def test_rule_34_codecs_refuse_by_name_what_would_lose_digits(codec: Any, why: str) -> None:
    with pytest.raises(MappingFailed) as refused:
        Codecs({"f": CodecSettings.model_validate(codec)}, ("f",)).encode({"f": Decimal(TINY)})
    assert why in str(refused.value)


def test_rule_34_versions_may_be_decimals() -> None:
    assert version_of(Decimal("1767225600.1234567890123"), "time") == 1_767_225_600_123_457
    assert version_of(Decimal("9007199254740993.0"), "number") == 9_007_199_254_740_993
    with pytest.raises(ValueError, match="no whole number"):
        version_of(Decimal("1.5"), "number")


def test_rule_34_responses_for_operators_keep_digits() -> None:
    assert ExactJson({"v": Decimal(TINY)}).body == b'{"v":' + TINY.encode() + b"}"


# The trial: from every kind of source to the third party's body.


class Body:
    """A third party that keeps the bytes of what it is sent and shows them again."""

    def __init__(self, server: Server) -> None:
        self.bodies: list[bytes] = []
        server.handler = self._handle

    async def _handle(self, request: Request) -> Response:
        if request.method == "POST":
            self.bodies.append(await request.body())
        asked = request.query_params
        if "code" in asked or asked.get("store", "A") != "A":
            return JSONResponse([])
        shown = [b'{"id":1,' + body[1:] for body in self.bodies[-1:]]
        listing = b"[" + b",".join(shown) + b"]"
        one = request.method != "GET" or request.url.path != "/items"
        return Response(shown[0] if one else listing, media_type="application/json")


def world_of(engine: Engine, server: Server, fields: Any) -> HttpWorld:
    config = two_part_config(
        entity={
            "third_party": {**THEIRS, "fields": fields},
            "mapping": {"code": "key", "store": "group", "price": "shop.price", "rate": "shop.rate"},
        }
    )
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    third_party = RestThirdParty(client, config.entities["item"].third_party, ("code", "store", "price", "rate"))
    return HttpWorld(engine, config, erp=third_party)  # type: ignore[arg-type]


ROW = {"key": "k1", "store": "A", "v": 1, "price": Decimal(LONG), "rate": Decimal(TINY)}


async def rows_of(way: str, tmp_path: Path) -> dict[str, Any]:
    """The row as a source of some kind gives it."""
    if way == "event":
        found = parse_event(exact_json.dumps(ROW))
        assert isinstance(found, dict)
        return found
    part: dict[str, Any] = {"key": "key", "group": "store", "version": {"path": "v", "kind": "number"}}
    if way == "sqlite":
        path = tmp_path / "shop.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE items (key TEXT, store TEXT, v INTEGER, price TEXT, rate TEXT)")
            connection.execute("INSERT INTO items VALUES ('k1', 'A', 1, ?, ?)", [LONG, TINY])
            connection.commit()
        settings = SqlSourceSettings.model_validate({"kind": "sql", "url": f"sqlite:///{path}"})
        source: Any = SqlSource(
            SourceDatabase("shop", settings), PartSettings.model_validate({**part, "sql": {"table": "items"}})
        )
    else:
        if way == "jsonl":
            (tmp_path / "a.jsonl").write_bytes(exact_json.dumps(ROW) + b"\n")
        else:
            if find_spec("pyarrow") is None:
                pytest.skip("pyarrow is not installed")
            import pyarrow as arrow
            import pyarrow.parquet as parquet

            parquet.write_table(arrow.table({name: [value] for name, value in ROW.items()}), tmp_path / "a.parquet")
        system = FileSourceSettings.model_validate({"kind": "files", "folder": str(tmp_path)})
        source = FileSource(system, PartSettings.model_validate({**part, "files": {"glob": "a.*"}}))
    [row] = [row async for rows, _ in source.pages("A") for row in rows]
    assert row.problem is None
    return dict(row.data)


@pytest.mark.parametrize("way", ["event", "jsonl", "parquet", "sqlite"])
async def test_case_r30_all_digits_are_read(tmp_path: Path, way: str) -> None:
    row = await rows_of(way, tmp_path)
    assert (str(row["price"]), str(row["rate"])) == (LONG, TINY)


@pytest.mark.parametrize(
    ("fields", "price", "rate"),
    [
        ({}, LONG, TINY),
        ({"price": {"kind": "decimal_text", "digits": 9}}, f'"{LONG}"', TINY),
        ({"price": {"kind": "minor_units", "digits": 9}, "rate": {"kind": "text"}}, "1234567890123456789", f'"{TINY}"'),
    ],
)
def test_case_r30_all_digits_arrive_and_are_in_sync(
    engine: Engine, server: Server, fields: Any, price: str, rate: str
) -> None:
    there, world = Body(server), world_of(engine, server, fields)
    world.stock.put("k1", {"key": "k1"})
    world.shop.put("k1", ROW, group="A")
    world.post_event("stock", "k1", "create", 1, {"key": "k1"})
    world.post_event("shop", "k1", "create", 1, parse_event(exact_json.dumps(ROW)))
    world.run_drain()
    assert there.bodies == [f'{{"code":"k1","store":"A","price":{price},"rate":{rate}}}'.encode()]
    world.run_full_sync()
    assert len(there.bodies) == 1
    result = world.run_validation(full=True)
    assert (result.verdict, result.reason, result.drift) == ("in_sync", None, [])
    there.bodies[0] = there.bodies[0].replace(b"89", b"88")
    result = world.run_validation(full=True)
    assert [(each["field"], each["ours"]) for each in result.drift[0].sample] == [("price", Decimal(LONG))]
    world.close()


def test_case_r30_a_rate_of_too_many_digits_is_refused_by_name(engine: Engine, server: Server) -> None:
    there, world = Body(server), world_of(engine, server, {"rate": {"kind": "decimal_text", "digits": 9}})
    world.stock.put("k1", {"key": "k1"})
    world.shop.put("k1", ROW, group="A")
    world.run_full_sync()
    assert there.bodies == []
    assert f"fields.rate: {TINY} cannot be written as decimal_text" in str(
        world.query("SELECT detail FROM sync.push_attempts")[0].detail
    )
    world.close()
