"""What is done faster than by a library must come to the same: columns of a batch, plain expressions and templates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_documents import DOCUMENTS, TEXTS
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from sync_orchestrator.core.db.session import run, to_jsonb

COLUMNS = {
    "text": TEXTS | st.sampled_from(["NULL", "null", "", "{}", '"', "\\", ",", " a "]),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "float8": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "bytea": st.binary(max_size=8),
}
ON_ONE_DATABASE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", COLUMNS)
@ON_ONE_DATABASE
@given(data=st.data())
def test_a_column_arrives_as_it_is(engine: Engine, kind: str, data: st.DataObject) -> None:
    items = data.draw(st.lists(st.none() | COLUMNS[kind], max_size=6))
    with engine.begin() as connection:
        found = run(
            connection, f"SELECT v FROM unnest(%(items)s::{kind}[]) WITH ORDINALITY AS u (v, n) ORDER BY n", items=items
        )
    assert [row.v for row in found] == items


@ON_ONE_DATABASE
@given(items=st.lists(DOCUMENTS.filter(lambda document: document is not None), max_size=4))
def test_a_column_of_documents_arrives_as_it_is(engine: Engine, items: list[Any]) -> None:
    with engine.begin() as connection:
        for column in ([to_jsonb(item) for item in items], [Jsonb(item) for item in items]):
            found = run(
                connection,
                "SELECT v FROM unnest(%(items)s::jsonb[]) WITH ORDINALITY AS u (v, n) ORDER BY n",
                items=column,
            )
            assert [row.v for row in found] == items


def test_nul_in_a_column_is_refused_before_it_could_split_a_text(engine: Engine) -> None:
    with engine.begin() as connection, pytest.raises(ValueError, match="NUL"):
        run(connection, "SELECT unnest(%(items)s::text[])", items=["a\x00b", "c"])
