"""Settings of captured sources: what belongs to one kind of database is refused for the other, with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sync_orchestrator import extras
from sync_orchestrator.config import Config
from sync_orchestrator.config.required_extras import find_missing_extras

POSTGRES, MYSQL = "postgresql+psycopg://u@h/shop", "mysql+pymysql://u@h/shop"
PART = {
    "sql": {"table": "items"},
    "key": "sku",
    "group": "store",
    "version": {"path": "v"},
    "changes": {"by": "log"},
}


def config(*sources: tuple[str, dict[str, Any]]) -> Config:
    """An entity for each source, whose URL and ``capture`` are given."""

    def describe_target(number: int) -> dict[str, Any]:
        return {
            "system": "erp",
            "key_field": "code",
            **{name: {"path": f"/items{number}"} for name in ("create", "list")},
            **{name: {"path": f"/items{number}/{{{{ id }}}}"} for name in ("update", "delete", "read")},
        }

    return Config.model_validate(
        {
            "sources": {
                f"shop{number}": {"kind": "sql", "url": url, "capture": capture}
                for number, (url, capture) in enumerate(sources)
            },
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
            "entities": {
                f"item{number}": {
                    "owner": f"shop{number}",
                    "parts": {f"shop{number}": PART},
                    "mapping": {"code": "key", "name": f"shop{number}.name"},
                    "third_party": describe_target(number),
                }
                for number in range(len(sources))
            },
        }
    )


@pytest.mark.parametrize(
    ("url", "capture", "sentence"),
    [
        (MYSQL, {"slot": "x"}, "capture.slot belongs to Postgres: leave it out"),
        (MYSQL, {"publication": "x"}, "capture.publication belongs to Postgres: leave it out"),
        (POSTGRES, {"server_id": 7}, "capture.server_id belongs to MySQL and MariaDB: leave it out"),
        (MYSQL, {"url": POSTGRES}, "capture.url must name the same kind of database as url"),
        (POSTGRES, {"url": MYSQL}, "capture.url must name the same kind of database as url"),
        (MYSQL, {"server_id": 0}, "greater than or equal to 1"),
        ("mysql+mysqldb://u@h/shop", {}, "whose url begins with mysql+pymysql:// or mariadb+pymysql://"),
    ],
)
def test_what_does_not_belong_together_is_refused(url: str, capture: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config((url, capture))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("url", [MYSQL, "mariadb+pymysql://u@h/shop", POSTGRES])
def test_each_kind_of_database_can_be_captured(url: str) -> None:
    assert config((url, {})).captured_sources() == ["shop0"]


def test_two_streams_of_a_server_need_numbers_of_their_own() -> None:
    assert config((MYSQL, {}), (MYSQL, {})).captured_sources() == ["shop0", "shop1"]
    assert config((MYSQL, {"server_id": 7}), (MYSQL, {"server_id": 8})).captured_sources() == ["shop0", "shop1"]
    with pytest.raises(ValidationError) as caught:
        config((MYSQL, {"server_id": 7}), (MYSQL, {"server_id": 7}))
    assert "sources.shop1.capture.server_id: sources.shop0 has the same server_id of this server" in str(caught.value)
    with pytest.raises(ValidationError, match="has the same slot of this server"):
        config((POSTGRES, {}), (POSTGRES, {}))


def test_a_captured_mysql_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, "pymysqlreplication", raising=False)
    [(place, told)] = find_missing_extras(config((MYSQL, {}), (POSTGRES, {})))
    assert place == ("sources", "shop0", "capture")
    assert "pip install 'sync-orchestrator[mysql]'" in told
