"""What is done faster than by a library must come to the same: plain expressions and templates."""

from __future__ import annotations

import re
from decimal import Decimal
from json import dumps, loads
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_documents import DOCUMENTS, TEXTS

from sync_orchestrator.adapters.http.responses import Answer, strict_json
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.core.values.mapping import compute_digest, to_canonical_json
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.selectors import compile_selector


@given(expression=st.sampled_from(["a", "a.b", "a.b.c", "b.a", "null", "length", "a.null"]), document=DOCUMENTS)
def test_a_plain_path_finds_what_jmespath_finds(expression: str, document: Any) -> None:
    assert compile_selector(expression).search(document) == jmespath.search(expression, document)
    assert compile_selector(expression).expression == expression


@given(
    value=st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), DOCUMENTS),
    template=st.sampled_from(["{{ a }}", "{{a}}", "x{{ a }}y", "{{ a }}{{ a }}", "{{ a }}\n", "x { a } {{  a  }}"]),
)
def test_a_template_that_only_puts_values_in_says_what_jinja_says(template: str, value: Any) -> None:
    """A filter that changes nothing makes Jinja do it."""
    longer = re.sub(r"a *}}", "a | default(a) }}", template)
    assert longer != template
    for fill in (templates.render_text, templates.render_path, templates.render_value):
        assert said(fill, template, value) == said(fill, longer, value)


@given(value=DOCUMENTS | st.integers(-(2**80), 2**80) | st.floats(-1e300, 1e300))
def test_an_answer_is_parsed_as_by_the_standard_library(value: Any) -> None:
    for content in (dumps(value).encode(), dumps(value, ensure_ascii=False).encode()):
        assert repr(strict_json(content)) == repr(loads(content))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"n": 18446744073709551616}', {"n": 18446744073709551616}),
        (b"-9223372036854775809", -9223372036854775809),
        (rb'"\ud800"', "\ud800"),
        (b"\xef\xbb\xbf{}", {}),
        (b"0.1234567890123456789012", Decimal("0.1234567890123456789012")),
    ],
)
def test_what_orjson_reads_otherwise_or_not_at_all_is_read(content: bytes, found: Any) -> None:
    assert strict_json(content) == found


@pytest.mark.parametrize("content", [b"NaN", b"1e400", b"[Infinity]", b"", b"{", b"\xff"])
def test_what_is_no_json_is_none(content: bytes) -> None:
    assert Answer(200, {}, content).body is None


@given(record=st.dictionaries(st.sampled_from("abcx"), DOCUMENTS, max_size=4))
def test_plain_fields_are_decoded_as_one_by_one(record: dict[str, Any]) -> None:
    codecs = Codecs({}, ("a", "b", "c"))
    assert codecs.decode(record) == {name: codecs.decode_field(record, name) for name in "abc"}


def said(fill: Any, template: str, value: Any) -> Any:
    try:
        return fill(template, {"a": value})
    except templates.TemplateFailed as error:
        return str(error).partition(" (in ")[0]


@given(document=DOCUMENTS)
def test_equal_documents_have_equal_digests_and_others_have_not(document: Any) -> None:
    assert compute_digest(document) == compute_digest(jumbled(document))
    assert compute_digest([document]) != compute_digest([document, None])
    assert (to_canonical_json(document) == to_canonical_json(0)) == (compute_digest(document) == compute_digest(0))


def jumbled(document: Any) -> Any:
    """The same with its names in another order and its whole numbers written the other way where that is exact."""
    if isinstance(document, dict):
        return {name: jumbled(document[name]) for name in reversed(document)}
    if isinstance(document, list):
        return [jumbled(item) for item in document]
    if isinstance(document, int) and not isinstance(document, bool) and abs(document) < 2**53:
        return float(document)
    return document
