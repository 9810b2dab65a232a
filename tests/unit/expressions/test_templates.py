"""Templates: what they refuse, what they know, and what of a value arrives at a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from http_server import Server, failure_of
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from template_calls import VALUES, Seen, odata_decoded, texts
from template_calls import call as call

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.paging import get_count, list_pages
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.calls import CountCallSettings, ListCallSettings, ReferenceSettings, WriteCallSettings
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import TemplateFailed

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("path", "params", "raw"),
    [
        pytest.param("/x", {"$filter": "{{ key }}"}, b"%24filter=name%20eq%20%27a%2Bb%27%26%23", id="params"),
        pytest.param(
            "/x?v=1&note=a%20b",
            {"q": "{{ key }}"},
            b"v=1&note=a%20b&q=name%20eq%20%27a%2Bb%27%26%23",
            id="added to the query of the path",
        ),
        pytest.param(
            "/x?q=1&v=a%20b",
            {"q": "{{ key }}"},
            b"v=a%20b&q=name%20eq%20%27a%2Bb%27%26%23",
            id="in place of one of the path",
        ),
        pytest.param("/x?q={{ key }}", {}, b"q=name%20eq%20%27a%2Bb%27%26%23", id="in the path"),
        pytest.param("/x?{{ {'q': key} | urlencode | raw }}", {}, b"q=name%20eq%20%27a%2Bb%27%26%23", id="urlencode"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_blank_in_a_query_is_percent_encoded(call: Seen, path: str, params: Any, raw: bytes, method: str) -> None:
    """Servers of OData refuse ``+``; all take ``%20``."""
    assert call({"key": "name eq 'a+b'&#"}, path=path, params=params, method=method).raw_query == raw


def test_a_blank_in_the_pages_of_a_listing_and_in_a_count_is_percent_encoded(call: Seen) -> None:
    queries: list[bytes] = []

    async def handle(request: Request) -> Response:
        queries.append(request.scope["query_string"])
        return JSONResponse({"n": 0, "items": []})

    async def read() -> None:
        listing = ListCallSettings(
            path="/x", params={"store": "{{ group }}", "after": "{{ after }}"}, items="items", paging="after"
        )
        assert [page async for page in list_pages(call.http, listing, {"group": "A B"}, key_of=str, after="k 1")] == []
        assert (
            await get_count(
                call.http, CountCallSettings(path="/n", params={"store": "{{ group }}"}, number="n"), {"group": "A B"}
            )
            == 0
        )

    call.server.handler = handle
    call.runner.run(read())
    assert queries == [b"store=A%20B&after=k%201", b"store=A%20B"]


def test_a_value_that_no_query_can_hold_is_refused(call: Seen) -> None:
    with pytest.raises(CallFailed, match="the request cannot be built: UnicodeEncodeError"):
        call({"key": "\ud800"}, params={"q": "{{ key }}"})


def test_a_form_is_encoded_as_forms_are(call: Seen) -> None:
    assert call({}, method="POST", content="form", body={"name": "a b"}).body == b"name=a+b"


def test_an_object_goes_with_more_fields_where_they_are_not_null() -> None:
    values = {"payload": {"name": "n", "old": 1}, "revision": 7, "none": None}
    filled = templates.render_value("{{ payload | plus(_rev=revision, old=2, gone=none) }}", values)
    assert (filled, values["payload"]) == ({"name": "n", "old": 2, "_rev": 7}, {"name": "n", "old": 1})


def test_a_uuid_is_the_same_for_the_same_text_and_another_for_another() -> None:
    made = [templates.render_text("{{ key | uuid }}", {"key": key}) for key in ("a/b", "a/b", "a/c")]
    assert made[0] == made[1] == "91410e86-9161-5317-9576-be5c7660f085" != made[2]


@given(payload=json_values)
def test_a_value_is_never_a_template_and_goes_into_a_body_unchanged(payload: Any) -> None:
    filled = templates.render_value({"data": "{{ payload }}", "text": "{{ payload | tojson }}"}, {"payload": payload})
    assert json.dumps(filled["data"]) == json.dumps(payload)
    assert json.dumps(json.loads(filled["text"])) == json.dumps(payload)


@pytest.mark.parametrize("name", ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "self", "config", "os"])
def test_sandbox_knows_no_names_but_those_of_the_call(name: str) -> None:
    with pytest.raises(TemplateFailed):
        templates.render_value(f"{{{{ {name} }}}}", VALUES)


@pytest.mark.parametrize("key", ["a/b", "a%2Fb", "a%2fb", "a+b", "(x='y')", "a;b,c", "%27%3B"])
def test_path_encodings_raw_arrives_as_it_is(call: Seen, key: str) -> None:
    assert call({"key": key}, path="/x/{{ key | raw }}").raw_path == f"/x/{key}"


@given(group=texts, payload=st.dictionaries(texts, json_values, max_size=3))
def test_query_and_body_values_arrive_at_the_server(call: Seen, group: str, payload: Any) -> None:
    seen = call(
        {"group": group, "payload": payload},
        params={
            "store": "{{ group }}",
            "filter": "{{ {'store': group} | tojson }}",
            "p": "{{ payload | tojson }}",
            "q": "store eq {{ group | odata }}",
        },
    )
    query = dict(seen.query)
    assert (query.get("store", ""), json.loads(query["filter"])) == (group, {"store": group})
    assert odata_decoded(query["q"].removeprefix("store eq ")) == group
    assert json.dumps(json.loads(query["p"])) == json.dumps(json.loads(seen.body)) == json.dumps(payload)


@given(text=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1).filter(lambda t: t == t.strip()))
def test_header_values_arrive_at_the_server(call: Seen, text: str) -> None:
    assert call({"key": text}, headers={"X-Key": "{{ key }}"}).headers["x-key"] == text


@pytest.mark.parametrize("text", ["a\r\nX-Evil: 1", "ü", "a\x00b"])
def test_header_values_that_no_header_can_hold_are_refused(call: Seen, text: str) -> None:
    with pytest.raises(CallFailed, match="header 'X-Key' can hold printable ASCII only"):
        call({"key": text}, headers={"X-Key": "{{ key }}"})


ITEM = {"name": "Hose", "price": 9.9, "langs": {"de": ["a"]}}


MUTATION = "mutation($id: ID!, $in: ItemInput!) { itemUpdate(id: $id, input: $in) { item { id } } }"


@pytest.mark.parametrize(
    ("settings", "body"),
    [
        pytest.param({}, ITEM, id="the payload itself"),
        pytest.param(
            {"body": {"data": {"type": "item", "id": "{{ id }}", "attributes": "{{ payload }}"}}},
            {"data": {"type": "item", "id": "7", "attributes": ITEM}},
            id="nested",
        ),
        pytest.param(
            {"body": {"item": {"title": "{{ payload.name }}", "all": ["{{ payload.langs.de }}"]}}},
            {"item": {"title": "Hose", "all": [["a"]]}},
            id="nested: picked out",
        ),
        pytest.param(
            {"body": {"query": MUTATION, "variables": {"id": "{{ id }}", "in": "{{ payload }}"}}},
            {"query": MUTATION, "variables": {"id": "7", "in": ITEM}},
            id="GraphQL with variables",
        ),
        pytest.param(
            {
                "body": {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "item.write",
                    "params": [["{{ id | int }}"], "{{ payload }}", {"context": {"store": "{{ group }}"}}],
                }
            },
            {"jsonrpc": "2.0", "id": 1, "method": "item.write", "params": [[7], ITEM, {"context": {"store": "A & B"}}]},
            id="JSON-RPC",
        ),
        pytest.param({"body": ["{{ payload.name }}", None, 1]}, ["Hose", None, 1], id="a list"),
        pytest.param(
            {"body": {"doc": "{{ payload | tojson }}"}},
            {"doc": json.dumps(ITEM, separators=(",", ":"))},
            id="JSON as a text within JSON",
        ),
        pytest.param({"body": {"{{ group }}": "{{ payload.price }}"}}, {"A & B": 9.9}, id="a name from a value"),
    ],
)
def test_bodies_arrive_at_the_server(call: Seen, settings: Any, body: Any) -> None:
    seen = call({"id": "7", "group": "A & B", "payload": ITEM}, **settings)
    assert json.loads(seen.body) == body
    assert seen.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("settings", "content", "body"),
    [
        pytest.param(
            {"content": "form", "body": {"action": "save", "item": "{{ payload | tojson }}", "n": "{{ group }}"}},
            "application/x-www-form-urlencoded",
            b"action=save&item=%7B%22name%22%3A%22Hose%22%7D&n=A+%26+B",
            id="a form with JSON in it",
        ),
        pytest.param(
            {"content": "lines", "body": [{"index": {"_id": "{{ id }}"}}, "{{ payload }}"]},
            "application/x-ndjson",
            b'{"index":{"_id":"7"}}\n{"name":"Hose"}\n',
            id="a document a line",
        ),
    ],
)
def test_bodies_of_other_kinds_arrive_at_the_server(call: Seen, settings: Any, content: str, body: bytes) -> None:
    seen = call({"id": "7", "group": "A & B", "payload": {"name": "Hose"}}, **settings)
    assert (seen.headers["content-type"], seen.body) == (content, body)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
def test_the_method_is_the_calls(call: Seen, method: str) -> None:
    assert call({}, method=method).method == method


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        pytest.param({"path": "/stores/{{ group }}/items/{{ key }}"}, lambda seen: seen.raw_path, id="path"),
        pytest.param(
            {"body": {"store": "{{ group }}", "item": "{{ payload }}"}}, lambda seen: seen.body.decode(), id="field"
        ),
        pytest.param({"params": {"filter[store]": "{{ group }}"}}, lambda seen: seen.query, id="filter"),
        pytest.param(
            {"params": {"q": "{{ {'store_code': group} | tojson }}"}},
            lambda seen: seen.query,
            id="filter: JSON in the query",
        ),
        pytest.param(
            {"headers": {"X-Store": "{{ group | base64 }}"}}, lambda seen: seen.headers["x-store"], id="header"
        ),
    ],
)
def test_business_group_in(call: Seen, settings: Any, place: Any) -> None:
    expected = {
        "/stores": "/stores/A%2FB/items/k%201",
        '{"store"': '{"store":"A/B","item":{"n":1}}',
        "X-Store": "QS9C",
        "filter[store]": [("filter[store]", "A/B")],
        "q": [("q", '{"store_code":"A/B"}')],
    }
    name = next(name for name in expected if name in json.dumps(settings).replace('{"store": "', '{"store"'))
    assert place(call({"group": "A/B", "key": "k 1", "payload": {"n": 1}}, **settings)) == expected[name]


def test_business_group_in_a_looked_up_reference_id(call: Seen) -> None:
    values = {"group": "A/B", "key": "k 1", "payload": {"n": 1}}
    looked_up: list[dict[str, str]] = []

    async def stores(request: Request) -> Response:
        looked_up.append(dict(request.query_params))
        return JSONResponse({"items": [{"id": 17}]})

    call.server.handler = stores
    store = ReferenceSettings(path="/stores", params={"code": "{{ group }}"}, record="items[0].id")
    found = call.runner.run(References(call.http, {"store": store}).resolve_references(values, {"store"}))
    seen = call({**values, **found}, path="/stores/{{ store }}/items", body={"store_id": "{{ store }}"})
    assert looked_up == [{"code": "A/B"}]
    assert (seen.raw_path, json.loads(seen.body)) == ("/stores/17/items", {"store_id": 17})


async def test_a_call_that_cannot_be_filled_in_is_not_sent(server: Server) -> None:
    http = HttpClient(HttpSettings(base_url=server.url))
    failure = await failure_of(http.send(WriteCallSettings(path="/x/{{ key }}"), {"id": 1}, write=True))
    await http.close()
    assert (failure.kind, failure.unknown) == (Failure.PERMANENT, False)
    assert failure.detail == "'key' is undefined (in '/x/{{ key }}')"
    assert server.seen == []
