"""No request makes a 5xx, and every answer is one that the description tells of: Schemathesis over the OpenAPI."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from api_client import key_for
from http_server import Server
from hypothesis import HealthCheck, given, settings
from proxies import proxy_config, proxy_service, route
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

EXAMPLES = int(os.environ.get("SYNC_TEST_EXAMPLES", "60"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
def api(engine: Engine, server: Server) -> Any:
    """The service's own description, with a key for everything; its third party takes whatever comes."""
    server.respond_with({"good": True})
    order = {
        "method": "POST",
        "path": "/orders/{no}",
        "third_party": "erp",
        "allow_writes": True,
        "call": {"method": "POST", "path": "/orders/{{ no }}", "body": {"order": "{{ body }}"}},
    }
    stone = route(
        query=["lang"],
        headers=["X-Merchant"],
        rollout={"by_header": "X-Merchant"},
        legacy={"base_url": server.url + "/old"},
        call={
            "path": "/items/{{ sku }}",
            "params": {"l": "{{ query.lang }}"},
            "headers": {"X-M": "{{ headers['x-merchant'] }}"},
        },
    )
    config = proxy_config(
        server,
        {"stone": stone, "order": order},
        api={"allowed_hosts": ["testserver"]},
        shop={"events": {"key": "body.k", "action": "body.op", "version": "body.v"}},
    )
    key = key_for(engine, "admin")
    schema = schemathesis.openapi.from_asgi("/openapi.json", proxy_service(engine, config), headers={"X-API-Key": key})

    @schema.auth()
    class Key:
        def get(self, case: Any, context: Any) -> str:
            return key

        def set(self, case: Any, data: str, context: Any) -> None:
            case.headers["X-API-Key"] = data

    return schema


OPERATIONS = [
    "record_events",
    "record_own_events",
    "look_up_event",
    "look_up_record",
    "list_conflicts",
    "show_conflict",
    "resolve_conflict",
    "list_rollouts",
    "show_rollout",
    "change_rollout",
    "proxy_stone",
    "proxy_order",
    "healthz",
    "readyz",
    "metrics",
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_makes_a_5xx(api: Any, name: str) -> None:
    [operation] = [found.ok() for found in api.get_all_operations() if found.ok().definition.raw["operationId"] == name]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def told(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    told()


def test_every_operation_is_tried(api: Any) -> None:
    assert {found.ok().definition.raw["operationId"] for found in api.get_all_operations()} == set(OPERATIONS)
