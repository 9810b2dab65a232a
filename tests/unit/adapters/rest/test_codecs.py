"""Mapped fields in the third party's shape and back: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.adapters.rest.paging import get_record
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.calls import ReadCallSettings, WriteCallSettings
from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.errors import MappingFailed

TYPED = {"__class__": "Decimal", "value": "{{ value }}"}

texts = st.text(max_size=20)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain_json = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from(["plain", "text", "number", "decimal_text", "minor_units", "bool_number"])
amounts = st.sampled_from(["decimal_text", "minor_units"])
shapes = st.sampled_from(
    [
        (None, None),
        (TYPED, None),
        (TYPED, "f.value"),
        ({"de": "{{ value }}"}, "f.de"),
        ("{{ value }}", None),
        (["x", {"y": "{{ value }}"}], None),
    ]
)


def codecs(**fields: Any) -> Codecs:
    """The codecs of a target with these fields and a plain one."""
    return Codecs({name: CodecSettings.model_validate(codec) for name, codec in fields.items()}, (*fields, "plain"))


# What is written, and that it comes back.


@pytest.mark.parametrize(
    ("codec", "ours", "theirs"),
    [
        pytest.param(
            {"kind": "decimal_text", "write": TYPED},
            9.9,
            {"__class__": "Decimal", "value": "9.90"},
            id="typed objects: Decimal",
        ),
        pytest.param(
            {"write": {"type": "day", "at": ["{{ value }}"]}},
            "2024-01-02",
            {"type": "day", "at": ["2024-01-02"]},
            id="typed objects: value in a list",
        ),
        pytest.param({"kind": "decimal_text"}, 9.9, "9.90", id="decimals as strings"),
        pytest.param({"kind": "decimal_text"}, 1, "1.00", id="decimals as strings: whole"),
        pytest.param({"kind": "decimal_text"}, -0.05, "-0.05", id="decimals as strings: negative"),
        pytest.param({"kind": "decimal_text", "digits": 0}, 7.0, "7", id="decimals as strings: no digits"),
        pytest.param(
            {"kind": "decimal_text"}, 1e22, "10000000000000000000000.00", id="decimals as strings: no exponent"
        ),
        pytest.param({"kind": "minor_units"}, 9.9, 990, id="decimals as cents"),
        pytest.param({"kind": "minor_units"}, 1.13, 113, id="decimals as cents: no binary error"),
        pytest.param({"kind": "minor_units"}, 4.35, 435, id="decimals as cents: no binary error (435.00000000000006)"),
        pytest.param({"kind": "minor_units"}, -19.99, -1999, id="decimals as cents: negative"),
        pytest.param({"kind": "minor_units", "digits": 3}, 0.001, 1, id="decimals as mils"),
        pytest.param({"kind": "text"}, 5, "5", id="numbers as text"),
        pytest.param({"kind": "text"}, 1.0, "1", id="numbers as text: whole"),
        pytest.param({"kind": "text"}, 0.1, "0.1", id="numbers as text: fraction"),
        pytest.param({"kind": "text"}, True, "true", id="truth values as text"),
        pytest.param({"kind": "text"}, "none", "none", id="text as text"),
        pytest.param({"kind": "number"}, "12", 12, id="text of digits as number"),
        pytest.param({"kind": "number"}, "-1.5", -1.5, id="text of a fraction as number"),
        pytest.param({"kind": "bool_number"}, True, 1, id="truth values as numbers"),
        pytest.param({"kind": "bool_number"}, False, 0, id="truth values as numbers: false"),
        pytest.param({"write": {"de": "{{ value }}"}}, "Hose", {"de": "Hose"}, id="language maps"),
        pytest.param({"write": {"de": "{{ value }}"}}, "{{ key }}", {"de": "{{ key }}"}, id="a value is no template"),
        pytest.param({"write": [{"v": "{{ value }}"}]}, {"a": [1]}, [{"v": {"a": [1]}}], id="structures in a shape"),
        pytest.param({"kind": "decimal_text", "write": TYPED}, None, None, id="null stays null"),
    ],
)
def test_a_value_is_written_in_their_shape_and_read_back_as_ours(codec: Any, ours: Any, theirs: Any) -> None:
    written = codecs(f=codec).encode({"f": ours, "plain": 9.9})
    assert json.dumps(written) == json.dumps({"f": theirs, "plain": 9.9})
    read = codecs(f=codec).decode(written)
    assert (compute_digest(read), type(read["f"]) is bool) == (
        compute_digest({"f": ours, "plain": 9.9}),
        type(ours) is bool,
    )


@given(kind=kinds, digits=st.integers(0, 12), shape=shapes, ours=plain_json)
def test_what_can_be_written_comes_back_as_it_was(kind: str, digits: int, shape: Any, ours: Any) -> None:
    both = codecs(f={"kind": kind, "digits": digits, "write": shape[0], "read": shape[1]})
    try:
        written = both.encode({"f": ours, "plain": ours})
    except MappingFailed:
        assert kind != "plain"
        return
    assert compute_digest(both.decode(json.loads(json.dumps(written)))) == compute_digest({"f": ours, "plain": ours})


@given(units=st.integers(-(10**15), 10**15), digits=st.integers(0, 4), kind=amounts)
def test_every_amount_in_its_smallest_units_can_be_written(units: int, digits: int, kind: str) -> None:
    ours = float(Decimal(units).scaleb(-digits))
    written = codecs(f={"kind": kind, "digits": digits}).encode({"f": ours})["f"]
    assert Decimal(written) == (Decimal(repr(ours)) if kind == "decimal_text" else units)


@given(ours=numbers | st.booleans())
def test_every_number_and_truth_value_can_be_written_as_text(ours: Any) -> None:
    both = codecs(f={"kind": "text"})
    assert compute_digest(both.decode(both.encode({"f": ours}))["f"]) == compute_digest(ours)


@pytest.mark.parametrize(
    ("codec", "ours", "why"),
    [
        ({"kind": "minor_units"}, 9.999, "it would come back as 10"),
        ({"kind": "decimal_text"}, 0.1 + 0.2, "it would come back as 0.3"),
        ({"kind": "decimal_text"}, "9.9", "it would come back as 9.9"),
        ({"kind": "decimal_text"}, "nine", "it is no number"),
        ({"kind": "decimal_text"}, True, "it is no number"),
        ({"kind": "minor_units"}, [1], "it is no number"),
        ({"kind": "decimal_text"}, 10**500, "it has too many digits"),
        ({"kind": "decimal_text"}, float("inf"), "it has too many digits"),
        ({"kind": "text"}, "5", "it would come back as 5"),
        ({"kind": "text"}, "true", "it would come back as True"),
        ({"kind": "text"}, {"a": 1}, "it is no number"),
        ({"kind": "number"}, "007", "it is no number in a text"),
        ({"kind": "number"}, "9.90", "it would come back as '9.9'"),
        ({"kind": "number"}, 12, "it is no number in a text"),
        ({"kind": "bool_number"}, 1, "it is no truth value"),
        ({"write": {"de": "{{ value }}", "n": "{{ value + 1 }}"}}, "a", "can only concatenate str"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_field(codec: Any, ours: Any, why: str) -> None:
    with pytest.raises(MappingFailed) as refused:
        codecs(f=codec).encode({"f": ours})
    assert str(refused.value).startswith("fields.f: ")
    assert why in str(refused.value)


# What is read.


@pytest.mark.parametrize(
    ("codec", "record", "ours"),
    [
        pytest.param(
            {"kind": "decimal_text", "write": TYPED, "read": "price.amount"},
            {"price": {"amount": 9.9}},
            9.9,
            id="read shape unlike write shape: elsewhere, as a number",
        ),
        pytest.param(
            {"kind": "decimal_text", "write": TYPED},
            {"f": "9.90"},
            9.9,
            id="read shape unlike write shape: without its object",
        ),
        pytest.param({"kind": "minor_units"}, {"f": "990"}, 9.9, id="read shape unlike write shape: cents in a text"),
        pytest.param({"kind": "minor_units"}, {"f": 990.5}, 9.905, id="read shape unlike write shape: half a cent"),
        pytest.param({"kind": "decimal_text"}, {"f": "9.900"}, 9.9, id="more digits of the same value"),
        pytest.param({"kind": "decimal_text"}, {"f": "1E+2"}, 100, id="an exponent"),
        pytest.param({"kind": "bool_number"}, {"f": True}, True, id="a truth value as itself"),
        pytest.param({"kind": "bool_number"}, {"f": "1"}, True, id="a truth value in a text"),
        pytest.param(
            {"write": {"de": "{{ value }}"}, "read": "n.de"},
            {"n": {"de": "Hose", "en": "trousers"}},
            "Hose",
            id="language maps: other languages are left aside",
        ),
        pytest.param({"write": {"de": "{{ value }}"}}, {"f": {"de": None}}, None, id="null in its shape is null"),
        pytest.param({"kind": "decimal_text"}, {}, None, id="a field that is not there is null"),
    ],
)
def test_a_field_is_read_by_its_value(codec: Any, record: Any, ours: Any) -> None:
    assert compute_digest(codecs(f=codec).decode(record)["f"]) == compute_digest(ours)


@pytest.mark.parametrize(
    ("codec", "shown"),
    [
        ({"kind": "decimal_text"}, "9,90"),
        ({"kind": "decimal_text"}, [9.9]),
        ({"kind": "decimal_text"}, "1e9999"),
        ({"kind": "decimal_text"}, "9" * 5000),
        ({"kind": "decimal_text"}, "NaN"),
        ({"kind": "decimal_text"}, "٩"),
        ({"kind": "decimal_text"}, True),
        ({"kind": "minor_units"}, "9.90 EUR"),
        ({"kind": "bool_number"}, 2),
        ({"kind": "bool_number"}, "yes"),
        ({"kind": "text"}, {"a": 1}),
        ({"kind": "text"}, "05"),
        ({"kind": "number"}, [1]),
        ({"kind": "decimal_text", "write": TYPED}, {"__class__": "Money", "amount": 1}),
        ({"write": {"de": "{{ value }}"}}, {"en": "trousers"}),
        ({"write": [0, "{{ value }}"]}, "ab"),
        ({"read": "max_by(f, &a)"}, "no list"),
    ],
)
def test_what_cannot_be_read_is_left_as_it_is(codec: Any, shown: Any) -> None:
    assert codecs(f=codec).decode({"f": shown})["f"] == shown


@given(kind=kinds, shape=shapes, record=plain_json | st.fixed_dictionaries({"f": plain_json}))
def test_no_record_of_theirs_is_too_odd_to_be_compared(kind: str, shape: Any, record: Any) -> None:
    read = codecs(f={"kind": kind, "write": shape[0], "read": shape[1]}).decode(record)
    assert read.keys() == {"f", "plain"}
    compute_digest(read)


# Over HTTP.


async def test_a_record_in_their_shape_compares_equal_although_they_add_to_it(server: Server) -> None:
    kept: dict[str, Any] = {}

    async def store(request: Request) -> Response:
        if request.method == "POST":
            kept.update(await request.json())
            kept["name"]["en"], kept["stock"] = "trousers", {"on_hand": kept.pop("count")}
            kept["price"]["currency"] = "EUR"
            return Response(status_code=204)
        return JSONResponse({**kept, "touched": 5, "links": []})

    server.handler = store
    both = codecs(
        price={"kind": "decimal_text", "write": TYPED},
        cents={"kind": "minor_units"},
        name={"write": {"de": "{{ value }}"}, "read": "name.de"},
        count={"kind": "text", "read": "stock.on_hand"},
    )
    ours = {"price": 19.9, "cents": 0.29, "name": 'Hose "{{ x }}"', "count": 3, "plain": [1, {"a": None}]}
    http = HttpClient(HttpSettings(base_url=server.url))
    await http.send(WriteCallSettings(path="/items"), {}, write=True, body=both.encode(ours))
    shown = await get_record(http, ReadCallSettings(path="/items"), {})
    await http.close()
    assert kept["price"] == {"__class__": "Decimal", "value": "19.90", "currency": "EUR"}
    assert (kept["cents"], kept["name"]["de"], kept["stock"]) == (29, ours["name"], {"on_hand": "3"})
    assert Mapping(dict.fromkeys(ours, "key")).digest_of_theirs(both.decode(shown)) == compute_digest(ours)


# The configuration.


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"code": {"write": "{{ value }} EUR"}}, "say with 'read' where it stands"),
        ({"price": {"kind": "text"}}, "third_party.fields.price: the mapping has no such field"),
    ],
)
def test_a_codec_that_cannot_work_is_refused(fields: Any, complaint: str) -> None:
    target = two_part_config().entities["item"].third_party.model_dump(exclude_unset=True)
    with pytest.raises(ValidationError) as refused:
        two_part_config(entity={"third_party": {**target, "fields": fields}})
    assert complaint in str(refused.value)
