"""Values, both ways: one set of functions for expressions and templates, times in the forms of third parties, and what
is compared of all that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from record_store import THEIRS
from value_examples import EXAMPLES, Odd, config_with, in_milliseconds, rows_of

from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.config.constants import uncompared_constants
from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.config.types import Expression, Template
from sync_orchestrator.conformance import run_conformance
from sync_orchestrator.core.archive.absent_fields import mapped_fields
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.errors import MappingFailed
from sync_orchestrator.expressions import templates, times
from sync_orchestrator.expressions.functions import FUNCTIONS
from sync_orchestrator.expressions.selectors import ExpressionFailed, compile_selector
from sync_orchestrator.expressions.templates import TemplateFailed

# The page of the docs.


def test_the_docs_show_every_function_and_every_format_of_times() -> None:
    assert {re.match(r"\w+", row[0])[0] for row in EXAMPLES} == FUNCTIONS.keys()  # type: ignore[index]
    formats = rows_of("format")
    assert {row[0] for row in formats if "%" not in row[0]} == times._WRITE.keys()
    for name, _, shown in formats:
        moment = times.moment_in("2024-01-31T22:30:00.500Z")
        assert times.written_as(moment, name) == json.loads(shown)


# One registry.

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(max_size=8)
    | st.sampled_from(["2024-01-31T22:30:00Z", "1.50", "&amp;", "a,b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MORE: dict[str, list[Any]] = {"replace": ["a", "b"], "split": [","], "join": [","], "cut": [3]}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=40, deadline=None)
@given(value=values)
def test_a_function_does_the_same_in_both_places_and_fails_by_name(name: str, value: Any) -> None:
    literals = MORE.get(name, [])
    expression = ", ".join(["v", *(f"'{each}'" if isinstance(each, str) else f"`{each}`" for each in literals)])
    arguments = f"({', '.join(map(repr, literals))})" if literals else ""

    def attempt(call: Callable[[], Any], *errors: type[Exception]) -> Any:
        try:
            return repr(call())
        except errors as error:
            return f"{name} failed" if f"{name}: " in str(error) else error

    by_expression = attempt(lambda: compile_selector(f"{name}({expression})").search({"v": value}), ExpressionFailed)
    by_filter = attempt(
        lambda: templates.render_value(f"{{{{ v | {name}{arguments} }}}}", {"v": value}), TemplateFailed
    )
    assert by_expression == by_filter


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"coalesce", "null_as_empty", "to_string"}))
def test_a_function_gives_null_for_null(name: str) -> None:
    assert FUNCTIONS[name].call(None, *MORE.get(name, [])) is None


class Settings(BaseModel):
    """One setting of each kind."""

    expression: Expression = "@"
    template: Template = ""


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"expression": "trimmed(a)"}, "unknown function 'trimmed'; expected one of: abs, avg"),
        (
            {"expression": "replace(a, 'b')"},
            "replace: missing a required argument: 'new'; it is called as replace(value, old, new, [count])",
        ),
        ({"expression": "a.lower(b, 'c')"}, "lower: too many positional arguments; it is called as lower(value)"),
        ({"expression": "length(a, b)"}, "length takes 1 argument(s), not 2"),
        ({"expression": "not_null()"}, "not_null takes at least 1 argument(s), not 0"),
        ({"expression": "[?round(a, `-1`) > `2`]"}, "round: the number -1 is no whole number"),
        ({"expression": "parse_time(a, 'iso', 'Europe/Berlim')"}, "parse_time: unknown time zone 'Europe/Berlim'"),
        ({"expression": "format_time(a, 'rfc')"}, "format_time: unknown time format 'rfc'; expected one of: iso,"),
        ({"expression": "format_time(a, '%9999999d')"}, "format_time: unknown time format"),
        ({"expression": "parse_time(a, '%H:%M')"}, "parse_time: the time format '%H:%M' has no whole date"),
        ({"template": "x {{ a | replace('b') }}"}, "replace: missing a required argument: 'new'"),
        ({"template": "{{ a | round(method='floor') }}"}, "round: got an unexpected keyword argument 'method'"),
        ({"template": "{{ a | format_time(zone='Mars') }}"}, "format_time: unknown time zone 'Mars'"),
        ({"template": "{{ a | fixed(99) }}"}, "fixed: at most 30 digits"),
    ],
)
def test_a_call_that_can_never_work_is_refused_when_it_is_loaded(setting: Any, complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(setting)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("trim(count)", "mapping.f: 'trim(count)': trim: the number 5 is no text"),
        ("join(',', [name, other])", "mapping.f: 'join(',', [name, other])': join: null in the list"),
        ("round(name)", "mapping.f: 'round(name)': round: the text 'lamp' is no number"),
        ("sort(name)", "mapping.f: 'sort(name)': sort: the text 'lamp' is no list"),
        (
            "parse_time(name)",
            "'parse_time(name)': parse_time: 'lamp' is no time in ISO 8601, such as 2024-01-31T10:00:00Z",
        ),
        ("parse_time('2024-02-30')", "parse_time: '2024-02-30' is no time: day is out of range for month"),
        ("parse_time('9999-12-31T23:00:00-05:00')", "is too early or too late"),
        ("parse_time(`1e300`, 'epoch')", "is too early or too late"),
        ("split(name, '')", "split: the separator is empty"),
        ("replace(name, '', 'x')", "replace: there is no text to replace"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(expression: str, complaint: str) -> None:
    with pytest.raises(MappingFailed) as refused:
        Mapping({"f": expression}).build_payload("k", None, {"count": 5, "name": "lamp"})
    assert complaint in str(refused.value)


def test_a_filter_says_which_name_is_missing() -> None:
    with pytest.raises(TemplateFailed, match="'dict object' has no attribute 'b'"):
        templates.render_value("{{ a.b | trim }}", {"a": {}})
    assert templates.render_value("{{ a.b | coalesce('x') }}", {"a": {}}) == "x"


def test_a_short_text_does_not_become_an_endless_one() -> None:
    with pytest.raises(ExpressionFailed, match="replace: the text would have more than"):
        compile_selector("replace(a, 'a', b)").search({"a": "a" * 100_000, "b": "b" * 100_000})
    with pytest.raises(ExpressionFailed, match="join: the text would have more than"):
        compile_selector("join(b, a)").search({"a": ["a"] * 100_000, "b": "b" * 100_000})


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("round(@, `2`)", 1234567890123456789.13),
        ("round_half_even(@, `2`)", Decimal("1234567890123456789.12")),
        ("fixed(@, `4`)", "1234567890123456789.1250"),
        ("to_string(@)", "1234567890123456789.125"),
    ],
)
def test_digits_are_kept(expression: str, result: Any) -> None:
    found = compile_selector(expression).search(Decimal("1234567890123456789.125"))
    assert compute_digest(found) == compute_digest(result if isinstance(result, str) else Decimal(str(found)))
    assert str(found).startswith("1234567890123456789.1")


def test_an_alternative_of_coalesce_may_be_absent() -> None:
    assert mapped_fields({"a": "coalesce(shop.price, shop.old)", "b": "trim(shop.name)"}) == {
        "shop": frozenset({"name"})
    }


@given(items=st.lists(st.integers(0, 3) | st.sampled_from([1.0, "1", "a", None, True, Decimal("1.00")]), max_size=6))
def test_lists_in_order_are_the_same_whatever_their_order_was(items: list[Any]) -> None:
    ordered, backwards = FUNCTIONS["sort"].call(items), FUNCTIONS["sort"].call(items[::-1])
    assert compute_digest(ordered) == compute_digest(backwards)
    once = FUNCTIONS["unique"].call(items)
    assert len({compute_digest(item) for item in once}) == len(once) == len({compute_digest(item) for item in items})


# Times.

MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "-03:30"])


@settings(max_examples=50, deadline=None)
@given(moment=MOMENTS, zone=ZONES, form=st.sampled_from(["iso", "iso_us", "%Y-%m-%dT%H:%M:%S.%f%z"]))
def test_a_time_comes_back_from_every_exact_form(moment: datetime, zone: str, form: str) -> None:
    ours = FUNCTIONS["parse_time"].call(moment.isoformat())
    theirs = FUNCTIONS["format_time"].call(ours, form, zone)
    assert FUNCTIONS["parse_time"].call(theirs, form, zone) == ours


@settings(max_examples=50, deadline=None)
@given(moment=MOMENTS, zone=ZONES, form=st.sampled_from([*times._WRITE, "%d.%m.%Y %H:%M", "%Y%m%d"]))
def test_a_time_in_any_form_is_compared_as_it_was_sent(moment: datetime, zone: str, form: str) -> None:
    """Written, read, and written once more: nothing changes after the first time."""
    both = Codecs({"f": CodecSettings(kind="time", format=form, zone=zone)}, ("f",))
    ours = moment.isoformat()
    sent = both.as_sent({"f": ours})
    assert both.decode(both.encode({"f": ours})) == sent
    again = both.as_sent(sent)
    assert both.decode(both.encode(sent)) == again


@pytest.mark.parametrize(
    ("codec", "ours", "shown"),
    [
        ({"format": "iso"}, "2024-01-31T22:30:00Z", "2024-01-31T22:30:00.000Z"),
        ({"format": "iso"}, "2024-01-31T22:30:00.120000Z", "2024-01-31T22:30:00.12Z"),
        ({"format": "iso"}, "2024-01-31T22:30:00Z", "2024-02-01T00:30:00+02:00"),
        ({"format": "iso"}, "2024-01-31T22:30:00Z", "2024-01-31 22:30:00"),
        ({"format": "iso"}, "2024-01-31T22:30:00Z", "/Date(1706740200000)/"),
        ({"format": "iso", "zone": "Europe/Berlin"}, "2024-01-31T22:30:00Z", "2024-01-31T23:30:00"),
        ({"format": "iso_seconds"}, "2024-01-31T22:30:00.999Z", "2024-01-31T22:30:00Z"),
        ({"format": "iso_ms"}, "2024-01-31T22:30:00.123456Z", "2024-01-31T22:30:00.123000Z"),
        ({"format": "date"}, "2024-01-31T22:30:00Z", "2024-01-31"),
        ({"format": "date"}, "2024-01-31T22:30:00Z", "2024-01-31T00:00:00.000Z"),
        ({"format": "date", "zone": "Europe/Berlin"}, "2024-01-31T23:30:00Z", "2024-02-01"),
        ({"format": "epoch"}, "2024-01-31T22:30:00.5Z", 1706740200),
        ({"format": "epoch"}, "2024-01-31T22:30:00Z", "1706740200"),
        ({"format": "epoch_ms"}, "2024-01-31T22:30:00.5Z", 1706740200500),
        ({"format": "epoch"}, "1969-12-31T23:59:59.5Z", -1),
        ({"format": "json_date"}, "2024-01-31T22:30:00Z", "/Date(1706740200000+0000)/"),
        ({"format": "%d.%m.%Y %H:%M"}, "2024-01-31T22:30:45Z", "31.01.2024 22:30"),
        ({"format": "%Y-%m-%d"}, "0999-01-31T00:00:00Z", "0999-01-31"),
        ({"format": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}, "2024-10-27T01:30:00Z", "2024-10-27 02:30"),
        (
            {"format": "iso", "write": {"$date": "{{ value }}"}},
            "2024-01-31T22:30:00Z",
            {"$date": "2024-01-31T22:30:00.000Z"},
        ),
    ],
)
def test_a_time_that_a_third_party_writes_in_its_own_way_is_no_difference(codec: Any, ours: Any, shown: Any) -> None:
    codecs = {"f": CodecSettings.model_validate({"kind": "time", **codec})}
    both = Codecs(codecs, ("f",))
    mapping = Mapping({"f": "@"}, codecs, as_sent=both.as_sent)
    assert mapping.digest_of_ours({"f": ours}) == mapping.digest_of_theirs(both.decode({"f": shown}))
    assert mapping.list_differences({"f": ours}, both.decode({"f": shown})) == []
    later = times._format_iso(times.moment_in(ours) + timedelta(days=1))
    assert mapping.list_differences({"f": later}, both.decode({"f": shown})) != []


def test_times_are_refused_by_name_and_read_as_they_are() -> None:
    both = Codecs({"f": CodecSettings(kind="time", format="date")}, ("f",))
    for value in ("yesterday", 5, True, ["2024-01-31"], "2024-13-01", "1" * 200):
        with pytest.raises(MappingFailed, match=r"fields\.f: .* cannot be written as time"):
            both.encode({"f": value})
    others: tuple[Any, ...] = ("never", {"a": 1}, [], True, None, "31.01.2024")
    for shown in others:
        assert both.decode({"f": shown})["f"] == shown


@pytest.mark.parametrize(
    ("codec", "complaint"),
    [
        ({"kind": "time", "format": "rfc"}, "unknown time format 'rfc'"),
        ({"kind": "time", "zone": "Mars"}, "unknown time zone 'Mars'"),
        ({"kind": "time", "format": "%H:%M"}, "has no whole date"),
        ({"kind": "text", "zone": "UTC"}, "'zone' is for kind: time"),
    ],
)
def test_a_form_of_times_that_cannot_work_is_refused(codec: Any, complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CodecSettings.model_validate(codec)
    assert complaint in str(refused.value)


def test_the_fingerprint_knows_the_form_of_times() -> None:
    """Since a change of it changes what is compared."""
    prints = {
        Mapping({"f": "a"}, {"f": CodecSettings.model_validate(codec)}, as_sent=dict).fingerprint
        for codec in (
            {},
            {"kind": "time"},
            {"kind": "time", "format": "date"},
            {"kind": "time", "zone": "Europe/Berlin"},
            {"write": "{{ value | upper }}"},
        )
    }
    assert len(prints) == 5


# What was sent.


@pytest.mark.parametrize(
    ("codec", "ours", "written", "compared"),
    [
        ({"write": "{{ value | trim | upper }}"}, " lamp ", "LAMP", "LAMP"),
        ({"write": {"de": "{{ value | trim }}"}}, " lamp ", {"de": "lamp"}, "lamp"),
        ({"write": "{{ value | join(',') }}", "read": "split(f, ',')"}, ["a", "b"], "a,b", ["a", "b"]),
        ({"write": "{{ value | unique | join(',') }}", "read": "split(f, ',')"}, ["a", "b", "a"], "a,b", ["a", "b"]),
        ({"write": "{{ value | join(',') }}"}, ["a", "b"], "a,b", "a,b"),
        ({"write": "{{ value | split(',') }}", "read": "f"}, "a,b", ["a", "b"], ["a", "b"]),
        ({"write": "{{ value | fixed(2) }}", "read": "to_number(f)"}, 9.999, "10.00", 10),
        ({"write": "{{ value | round(1) }}"}, 9.96, 10, 10),
        ({"read": "trim(f)"}, " lamp ", " lamp ", "lamp"),
        ({"read": "html_unescape(f)"}, "a & b", "a & b", "a & b"),
        ({"read": "to_number(f)"}, "12", "12", 12),
        ({"write": "{{ value | null_as_empty }}"}, None, "", ""),
        ({"write": "{{ value | coalesce('none') }}"}, None, "none", "none"),
        ({"write": {"de": "{{ value | null_as_empty }}"}}, None, {"de": ""}, ""),
        ({"kind": "decimal_text", "write": "{{ value | coalesce('0.00') }}"}, None, "0.00", 0),
        ({"read": "coalesce(f, '')"}, None, None, ""),
        ({"write": "{{ value | upper }}"}, None, None, None),
        ({"write": "{{ value | empty_as_null }}"}, "", None, None),
        ({"write": "{{ value | upper }}", "read": "stock.level"}, "lamp", "LAMP", "lamp"),
        ({"read": "stock.level"}, "lamp", "lamp", "lamp"),
    ],
)
def test_what_is_compared_is_what_is_read_of_what_was_sent(codec: Any, ours: Any, written: Any, compared: Any) -> None:
    both = Codecs({"f": CodecSettings.model_validate(codec)}, ("f",))
    assert both.encode({"f": ours}) == {"f": written}
    assert (both.as_sent({"f": ours}) if both.change_values else {"f": ours}) == {"f": compared}


async def test_conformance_takes_a_time_in_another_form_for_what_was_written(server: Server) -> None:
    type("Kept", (Odd,), {"keep": staticmethod(in_milliseconds)})(server)
    config = two_part_config(
        system={"base_url": server.url},
        shop={"base_url": server.url},
        entity={"third_party": {**THEIRS, "fields": {"name": {"kind": "time"}}}},
    )
    report = await run_conformance(
        config,
        "item",
        group="A",
        samples=[{"code": "k", "store": "A", "name": f"2024-01-31T22:30:0{second}Z", "count": 1} for second in (0, 1)],
    )
    endings = {ending.behaviour: ending for ending in report.endings}
    assert {name for name, ending in endings.items() if ending.outcome == "failed" and "name:" in ending.came} == set()
    assert endings["update-then-read"].outcome == "passed"


# Constants.


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (
            {
                "create": {
                    "path": "/i",
                    "body": {"name": "{{ payload.name }}", "type": "consu", "active": True, "code": "x"},
                }
            },
            {"create.body": ["type", "active"]},
        ),
        ({"create": {"path": "/i", "body": {"jsonrpc": "2.0", "params": {"args": ["create", "{{ payload }}"]}}}}, {}),
        (
            {
                "create": {
                    "path": "/i",
                    "body": {"jsonrpc": "2.0", "params": [{"n": "{{ payload['name'] }}", "kind": ["a"]}]},
                }
            },
            {"create.body": ["kind"]},
        ),
        (
            {"create": {"path": "/i", "body": "{{ payload | plus(status='open', rank=payload.count) }}"}},
            {"create.body": ["status"]},
        ),
        (
            {
                "update": {
                    "path": "/i/{{ id }}",
                    "method": "PUT",
                    "body": {"@type": "Item", "n": "{{ payload.name | trim }}"},
                }
            },
            {},
        ),
        (
            {
                "update": {
                    "path": "/i/{{ id }}",
                    "method": "PUT",
                    "then": [
                        {"method": "POST", "path": "/stock", "body": {"level": "{{ payload.count }}", "depot": 4}}
                    ],
                }
            },
            {"update.then[0].body": ["depot"]},
        ),
        ({"bulk_update": {"request": {"path": "/b"}, "item": {"method": "PUT", "body": "{{ payload }}"}}}, {}),
        (
            {
                "bulk_update": {
                    "request": {"path": "/b"},
                    "item": {"id": "{{ id }}", "n": "{{ payload.name }}", "x": None},
                }
            },
            {"bulk_update.item": ["x"]},
        ),
        (
            {"fields": {"count": {"write": {"__class__": "Money", "currency": "EUR", "value": "{{ value }}"}}}},
            {"fields.count.write": ["currency"]},
        ),
    ],
)
def test_constants_that_are_sent_and_not_compared_are_found(target: Any, found: Any) -> None:
    assert uncompared_constants(config_with(**target).entities["item"]) == found
