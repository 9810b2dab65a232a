"""Templates: where they stand in a call, what of a value arrives at a server, and what they refuse."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from template_calls import AWKWARD_IDS, VALUES, Seen, ids, odata_decoded
from template_calls import call as call

from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import TemplateFailed


def datasette_decoded(text: str) -> str:
    """A tilde-encoded text as Datasette decodes it: a percent-encoded one with other signs."""
    percent = text.replace("%", "%25").replace("+", " ").replace("~", "%")
    return unquote_to_bytes(percent).decode()


def path_segment(text: str) -> str:
    return unquote_to_bytes(text).decode()


# Against a reference decoder.


@pytest.mark.parametrize(
    ("template", "decoded"),
    [
        pytest.param("/x/{{ key }}/y", path_segment, id="percent"),
        pytest.param("/x/{{ key | odata }}/y", lambda text: odata_decoded(path_segment(text)), id="odata"),
        pytest.param("/x/{{ key | tilde }}/y", datasette_decoded, id="tilde"),
        pytest.param(
            "/x/{{ key | base64 }}/y", lambda text: base64.b64decode(path_segment(text)).decode(), id="base64"
        ),
        pytest.param("/x/{{ key | tojson }}/y", lambda text: json.loads(path_segment(text)), id="tojson"),
    ],
)
@given(key=ids)
def test_path_encodings_keep_any_id(template: str, decoded: Any, key: str) -> None:
    path = templates.render_path(template, {"key": key})
    assert re.fullmatch(r"/x/[A-Za-z0-9._~%+-]+/y", path)
    assert decoded(path.split("/")[2]) == key


@pytest.mark.parametrize(
    ("template", "path"),
    [
        pytest.param("/items/{{ key }}", "/items/a%2Fb%20c", id="percent"),
        pytest.param("/Items('{{ id }}')", "/Items('7')", id="a number between quotes"),
        pytest.param("/Items({{ payload.name | odata }})", "/Items(%27O%27%27Neil%20%22x%22%27)", id="odata"),
        pytest.param("/db/{{ key | tilde }}", "/db/a~2Fb+c", id="tilde"),
        pytest.param("/{{ key | raw }}", "/a/b c", id="raw"),
        pytest.param("/{{ none or 'y' }}", "/y", id="an expression"),
        pytest.param("/flags/{{ yes }}/{{ ratio }}", "/flags/true/0.5", id="no text"),
        pytest.param("/{% for id in ids %}{{ id }};{% endfor %}", "/x;y%20z;", id="a loop"),
    ],
)
def test_a_path_is_encoded_value_by_value(template: str, path: str) -> None:
    assert templates.render_path(template, VALUES) == path


@pytest.mark.parametrize(
    ("key", "template"),
    [
        ("", "/x/{{ key }}"),
        (None, "/x/{{ key }}"),
        ("", "/x/{{ key | tilde }}"),
        (".", "/x/{{ key }}"),
        ("..", "/x/{{ key }}/y"),
        ("../y", "/x/{{ key | raw }}"),
        ("a/../b", "/x/{{ key | raw }}"),
        (None, "/x({{ key | odata }})"),
        ([], "/x/{{ key }}"),
        ({"a": 1}, "/x/{{ key }}"),
    ],
)
def test_a_value_that_would_make_it_another_path_is_refused(key: Any, template: str) -> None:
    with pytest.raises(TemplateFailed) as failed:
        templates.render_path(template, {"key": key})
    assert template in str(failed.value)


# What a text and a body are filled in with.


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{ key }}", "a/b c"),
        ("{{ none }}", ""),
        ("{{ yes }}", "true"),
        ("x {{ id }}", "x 7"),
        ("{{ ids | join(',') }}", "x,y z"),
        ('{"a": {{ payload.tags | tojson }}}', '{"a": ["a",null]}'),
        ("{{ group }}&{{ payload.name }}", 'Ünï & co&O\'Neil "x"'),
        ("{{ payload.items }}", "3"),
        ("{{ {1: 2}[1] }}", "2"),
        ("Basic {{ 'u:ü' | base64 }}", "Basic dTrDvA=="),
        (
            "{{ (payload | tojson) ~ '<' }}",
            '{"name":"O\'Neil \\"x\\"","price":9.9,"tags":["a",null],"items":3,"nothing":null}<',
        ),
    ],
)
def test_a_text_is_filled_in_as_it_is(template: str, filled: str) -> None:
    assert templates.render_text(template, VALUES) == filled


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{ payload }}", VALUES["payload"]),
        (" {{ payload.tags }}\n", ["a", None]),
        ("{{ none }}", None),
        ("{{ yes }}", True),
        ("{{ id }}{{ id }}", "77"),
        ("{{ '}}' }}", "}}"),
        (7, 7),
        (None, None),
        ("plain", "plain"),
        ("{{ ids | map('upper') }}", ["X", "Y Z"]),
        ("{{ payload.items }}", 3),
        ("{{ {'a': ids} }}", {"a": ["x", "y z"]}),
        ({"{{ key }}": ["{{ id }}", {"n": "no. {{ id }}"}]}, {"a/b c": [7, {"n": "no. 7"}]}),
        ({"q": "query { item(id: 1) { id owner { id } } }"}, {"q": "query { item(id: 1) { id owner { id } } }"}),
    ],
)
def test_a_body_keeps_the_kinds_of_its_values(template: Any, filled: Any) -> None:
    assert templates.render_value(template, VALUES) == filled


# What it refuses.


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("{{ nope }}", "'nope' is undefined", id="unknown name"),
        pytest.param("{{ [nope] | tojson }}", "'nope' is undefined", id="unknown name in a list"),
        pytest.param("a {{ nope | base64 }}", "'nope' is undefined", id="unknown name in a filter"),
        pytest.param("{{ payload.nope }}", "'dict object' has no attribute 'nope'", id="unknown field"),
        pytest.param(
            "{{ payload.nope | tilde }}", "'dict object' has no attribute 'nope'", id="unknown field, encoded"
        ),
        pytest.param("a {{ payload }}", "an object stands in a text by '| tojson' only", id="an object in a text"),
        pytest.param("a {{ ids }}", "a list stands in a text by '| tojson' only", id="a list in a text"),
        pytest.param("a {{ payload.keys }}", "a function stands in a text", id="a method"),
        pytest.param("{{ payload.keys }}", "a function is no value", id="a method as a value"),
        pytest.param("{{ key | plus(a=1) | tojson }}", "fields are added to an object only", id="fields for a text"),
        pytest.param("{{ payload | plus(a=nope) | tojson }}", "'nope' is undefined", id="an unknown name as a field"),
        pytest.param("{{ none | uuid }}", "a text that is not empty", id="a UUID of nothing"),
        pytest.param("{{ ids | sum }}", "TypeError", id="a filter that does not fit"),
        pytest.param("{{ 1 / 0 }}", "ZeroDivisionError", id="arithmetic"),
        pytest.param("{{ '{x}'.format() }}", "KeyError", id="a format without its value"),
    ],
)
def test_a_template_that_cannot_be_filled_in_says_which_and_what_is_wrong(template: str, why: str) -> None:
    for fill in (templates.render_text, templates.render_value) if "a " not in template else (templates.render_text,):
        if fill is templates.render_text and why.endswith("is no value"):
            continue
        with pytest.raises(TemplateFailed) as failed:
            fill(template, VALUES)
        assert why in str(failed.value)
        assert f"(in '{template}')" in str(failed.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ key.__class__ }}",
        "{{ key['__class__'] }}",
        "{{ key | attr('__class__') }}",
        "{{ ids.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ payload.pop.__globals__ }}",
        "{{ payload.update({}) }}",
        "{{ '{0.__class__}'.format(key) }}",
        "{{ payload.__init__ }}",
        "{{ payload.clear() }}",
        "{{ ('%s' | format).__globals__ }}",
    ],
)
def test_sandbox_gives_no_internals_and_changes_no_values(template: str) -> None:
    before = json.dumps(VALUES)
    for fill in (templates.render_text, templates.render_value, templates.render_path):
        with pytest.raises(TemplateFailed):
            fill(template, VALUES)
    assert json.dumps(VALUES) == before


@pytest.mark.parametrize("template", ["{{ x", "{% if %}", "{{ x | nofilter }}", "{% include 'a' %}x{{"])
def test_no_template_is_refused_with_what_is_wrong(template: str) -> None:
    with pytest.raises(ValueError, match="not a template"):
        templates.names_in({"a": [template]})


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ("{{ value }}", ()),
        ("{{value}}", ()),
        ({"a": ["x", {"b": "{{ value }}"}]}, ("a", 1, "b")),
        ({1: "{{ value }}"}, ("1",)),
        ("{{ value | trim | upper }}", ()),
        ("{{ value + 1 }}", None),
        ("{{ other | plus(a=value) }}", None),
        ("{{ value }} EUR", None),
        ({"a": "{{ other }}"}, None),
        (None, None),
    ],
)
def test_the_place_of_a_name_in_a_structure(template: Any, place: Any) -> None:
    assert templates.place_of(template, "value") == place


# What a real server gets.


@pytest.mark.parametrize(
    ("template", "decoded"),
    [
        pytest.param("/x/{{ key }}/y", path_segment, id="percent"),
        pytest.param("/x/{{ key | odata }}/y", lambda text: odata_decoded(path_segment(text)), id="odata"),
        pytest.param("/x/{{ key | tilde }}/y", datasette_decoded, id="tilde"),
        pytest.param(
            "/x/{{ key | base64 }}/y", lambda text: base64.b64decode(path_segment(text)).decode(), id="base64"
        ),
    ],
)
@given(key=ids)
def test_path_encodings_arrive_at_the_server(call: Seen, template: str, decoded: Any, key: str) -> None:
    assert decoded(call({"key": key}, path=template).raw_path.split("/")[2]) == key


@pytest.mark.parametrize("key", AWKWARD_IDS)
@pytest.mark.parametrize("template", ["/x/{{ key }}", "/Items({{ key | odata }})/x", "/x/{{ key | tilde }}"])
def test_id_character_sets_arrive_at_the_server_as_the_template_says(call: Seen, template: str, key: str) -> None:
    assert call({"key": key}, path=template).raw_path == templates.render_path(template, {"key": key})
