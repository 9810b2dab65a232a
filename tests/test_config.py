"""What ``sync.yaml`` may say, and how plainly it is told what it may not."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import two_part_config
from pydantic import ValidationError

CALL = {"path": "/items/{key}"}
LISTING = {"path": "/items", "params": {"store": "{group}"}}


@pytest.mark.parametrize(("part", "complaint"), [
    ({"read": {"path": "/{kye}"}}, "read: nothing fills {kye} in '/{kye}'; known here: {key}"),
    ({"read": {"path": "/{key}", "params": {"shop": "{group}"}}}, "nothing fills {group} in '{group}'"),
    ({"list": {"path": "/", "params": {"from": "{after}"}}}, "list: nothing fills {after} in '{after}'"),
    ({"list": {"path": "/", "params": {"p": "{page}", "c": "{cursor}"}, "paging": "page"}}, "nothing fills {cursor}"),
    ({"read_many": {"path": "/{key}"}}, "read_many: nothing fills {key} in '/{key}'; known here: {keys}"),
    ({"count": {"path": "/{groups}"}}, "count: nothing fills {groups}"),
    ({"groups": {"path": "/{group}"}}, "groups: nothing fills {group} in '/{group}'; known here: none"),
    ({"read": {"path": "/{key"}}, "read: expected '}' before end of string in '/{key'"),
])
def test_a_placeholder_that_nothing_fills_is_refused_in_a_source(part: dict[str, Any], complaint: str) -> None:
    shop = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}, "group": "store", **part}
    with pytest.raises(ValidationError) as refused:
        two_part_config(entity={"parts": {"shop": shop}})
    assert complaint in str(refused.value)


@pytest.mark.parametrize(("call", "settings", "complaint"), [
    ("create", {"method": "POST", "path": "/{id}"}, "create: nothing fills {id}"),
    ("update", {"method": "PUT", "path": "/{ID}"}, "update: nothing fills {ID}"),
    ("delete", {"method": "DELETE", "path": "/", "params": {"a": "{keys}"}}, "delete: nothing fills {keys}"),
    ("read", {"path": "/{}"}, "read: nothing fills {}"),
    ("lookup", {"path": "/", "params": {"q": "{id}"}}, "lookup: nothing fills {id}"),
    ("list", {"path": "/", "params": {"q": "{key}"}}, "list: nothing fills {key}"),
    ("count", {"path": "/{after}"}, "count: nothing fills {after}"),
])
def test_a_placeholder_that_nothing_fills_is_refused_at_the_third_party(
    call: str, settings: dict[str, Any], complaint: str
) -> None:
    target = {
        "system": "erp", "key_field": "code", "create": {"method": "POST", "path": "/"},
        "update": {"method": "PUT", "path": "/{id}"}, "delete": {"method": "DELETE", "path": "/{id}"},
        "read": {"path": "/{id}"}, "list": {"path": "/"}, call: settings,
    }
    with pytest.raises(ValidationError) as refused:
        two_part_config(entity={"third_party": target})
    assert complaint in str(refused.value)
