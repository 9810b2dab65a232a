"""`init` by a source's tables, files and OpenAPI document, and by that of the third party."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Server
from jsonschema import Draft202012Validator  # it has no types
from paths import SUPPORT
from starlette.requests import Request
from starlette.responses import Response
from starter_runs import PARTNER, Init, explained, part_of, written
from starter_runs import init as init
from typer.testing import Result

from sync_orchestrator.cli.starter.document import marked_lines
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, read_document
from sync_orchestrator.config import parse_config
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.errors import ConfigError

DOCUMENTS = SUPPORT / "openapi"
TABLES = """
CREATE TABLE stores (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE products (
    id INTEGER PRIMARY KEY, sku VARCHAR(40) NOT NULL UNIQUE, store_id INTEGER NOT NULL REFERENCES stores (id),
    title TEXT, price NUMERIC(10, 2), image BLOB, api_token TEXT, created_at TIMESTAMP, updated_at TIMESTAMP NOT NULL);
CREATE TABLE stock (sku TEXT, warehouse TEXT, amount INTEGER, row_version INTEGER, PRIMARY KEY (sku, warehouse));
CREATE TABLE notes (body TEXT);
"""
CSV = "sku;shop;name;price;updated_at\nA-1;berlin;Lamp;9.90;2026-01-02T10:00:00Z\nA-2;berlin;Tür;8;2026-01-03 11:00\n"


@pytest.fixture
def tables(tmp_path: Path) -> str:
    """A database of a shop; its URL."""
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.executescript(TABLES)
    connection.close()
    return f"sqlite:///{tmp_path / 'shop.db'}"


def target_of(folder: Path) -> Any:
    [entity] = written(folder)["entities"].values()
    return entity["third_party"]


# Databases ----------------------------------------------------------------------------------------------------------


def test_a_table_gives_key_version_group_and_fields_and_the_reasons_are_named(
    init: Init,
    tables: str,
    tmp_path: Path,
) -> None:
    result = init("--entity", "product", "--source-url", tables, "--third-party-url", PARTNER)
    assert result.exit_code == 0, result.output
    part = part_of(tmp_path)
    assert part == {
        "key": "id",
        "group": "store_id",
        "version": {"path": "updated_at", "kind": "time"},
        "sql": {"table": "products"},
    }
    assert written(tmp_path)["sources"]["backoffice"] == {"kind": "sql", "url": tables}
    mapping = written(tmp_path)["entities"]["product"]["mapping"]
    assert mapping == {
        "external_id": "key",
        "store_id": "group",
        "sku": "backoffice.sku",
        "title": "backoffice.title",
        "price": "backoffice.price",
    }
    for said in (
        "tables: notes, products, stock, stores",
        "guessed key: id (the primary key; unique, too: sku)",
        "guessed group: store_id (a foreign key, by its name)",
        "left out, binary or secret by their names: image, api_token",
    ):
        assert said in result.stdout
    assert "key: id  # guessed: the primary key" in (tmp_path / "sync.yaml").read_text()
    assert explained(tmp_path) == []


def test_what_a_table_does_not_say_is_a_marked_line(init: Init, tables: str, tmp_path: Path) -> None:
    assert init("--entity", "stock", "--source-url", tables, "--third-party-url", PARTNER).exit_code == 0
    part = part_of(tmp_path)
    assert (part["group"], part["version"]) == ("warehouse", {"path": "row_version", "kind": "number"})
    init("--force", "--entity", "note", "--source-url", tables, "--third-party-url", PARTNER)
    assert len(explained(tmp_path)) == 3
    filled = (tmp_path / "sync.yaml").read_text().replace("TODO", "body")
    (tmp_path / "sync.yaml").write_text(filled)
    assert explained(tmp_path) == []


def test_options_take_the_place_of_guesses(init: Init, tables: str, tmp_path: Path) -> None:
    init(
        "--entity",
        "thing",
        "--source-url",
        tables,
        "--source-table",
        "products",
        "--key",
        "sku",
        "--group",
        "title",
        "--version",
        "price",
        "--version-kind",
        "number",
        "--fields",
        "title,price",
        "--third-party-url",
        PARTNER,
    )
    part = part_of(tmp_path)
    assert (part["key"], part["group"], part["version"]) == ("sku", "title", {"path": "price", "kind": "number"})
    assert written(tmp_path)["entities"]["thing"]["mapping"].keys() == {"sku", "title", "price"}
    assert "guessed" not in (tmp_path / "sync.yaml").read_text()


def test_a_column_whose_guessed_role_an_option_gives_to_another_is_copied(
    init: Init,
    tables: str,
    tmp_path: Path,
) -> None:
    result = init("--entity", "product", "--source-url", tables, "--third-party-url", PARTNER, "--group", "title")
    assert result.exit_code == 0, result.output
    assert "guessed group" not in result.stdout
    assert "guessed key: id" in result.stdout
    mapping = written(tmp_path)["entities"]["product"]["mapping"]
    assert mapping == {
        "external_id": "key",
        "title": "group",
        "sku": "backoffice.sku",
        "store_id": "backoffice.store_id",
        "price": "backoffice.price",
    }


def test_a_column_whose_guessed_role_an_answer_gives_to_another_is_copied(
    init: Init,
    tables: str,
    tmp_path: Path,
) -> None:
    result = init("--third-party-url", PARTNER, typed=f"product\n{tables}\nproducts\nsku\n\ntitle\n\n")
    assert result.exit_code == 0, result.output
    mapping = written(tmp_path)["entities"]["product"]["mapping"]
    assert mapping == {"sku": "key", "title": "group", "store_id": "backoffice.store_id", "price": "backoffice.price"}


def test_the_kind_of_a_chosen_version_is_that_of_its_column(init: Init, tables: str, tmp_path: Path) -> None:
    init("--entity", "product", "--source-url", tables, "--third-party-url", PARTNER, "--version", "price")
    assert part_of(tmp_path)["version"] == {"path": "price", "kind": "number"}


def test_tables_and_guesses_are_offered_to_who_is_asked(init: Init, tables: str, tmp_path: Path) -> None:
    result = init("--third-party-url", PARTNER, typed=f"article\n{tables}\nproducts\nsku\n\n\n\n")
    assert result.exit_code == 0, result.output
    assert "Which field names a record? [id]" in result.stdout
    assert (part_of(tmp_path)["key"], part_of(tmp_path)["group"]) == ("sku", "store_id")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--source-url", "sqlite:///nowhere.db"), "there is no file nowhere.db"),
        (("--source-url", "{tables}", "--source-table", "prices"), "unknown table 'prices'; expected one of: notes, "),
        (("--source-url", "cobol://host/name"), "unknown kind of database 'cobol'"),
        (("--source-url", "postgresql://user:hush-hush@127.0.0.1:1/name"), "127.0.0.1"),
        (("--source-files", "nothing*.csv"), "no file matches nothing*.csv"),
        (("--source-files", "shop.db"), "unknown kind of file"),
        (("--source-url", "https://x.example.com", "--from", "{documents}/absent.yaml"), "No such file"),
    ],
)
def test_what_cannot_be_read_is_an_error_in_one_line_and_writes_nothing(
    words: tuple[str, ...],
    said: str,
    init: Init,
    tables: str,
    tmp_path: Path,
) -> None:
    filled = [word.format(tables=tables, documents=DOCUMENTS) for word in words]
    result = init("--entity", "product", *filled, "--third-party-url", PARTNER)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
    assert "hush-hush" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.db"]


# Files --------------------------------------------------------------------------------------------------------------


def test_the_header_and_rows_of_a_csv_file_are_read(init: Init, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "products-1.csv").write_bytes(CSV.encode("cp1252"))
    result = init("--entity", "product", "--source-files", "out/products-*.csv", "--third-party-url", PARTNER)
    assert result.exit_code == 0, result.output
    assert part_of(tmp_path) == {
        "key": "sku",
        "group": "shop",
        "version": {"path": "updated_at", "kind": "time"},
        "files": {"glob": "products-*.csv", "encoding": "cp1252", "delimiter": ";"},
    }
    assert written(tmp_path)["sources"]["backoffice"] == {"kind": "files", "folder": str(tmp_path / "out")}
    assert explained(tmp_path) == []


def test_json_lines_and_odd_column_names_are_read(init: Init, tmp_path: Path) -> None:
    rows = [{"Item No": f"A-{number}", "Store Code": "b", "rev": number, "Long name": None} for number in range(3)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert init("--entity", "item", "--source-url", "items.jsonl", "--third-party-url", PARTNER).exit_code == 0
    part = part_of(tmp_path)
    assert (part["key"], part["group"], part["version"]) == (
        '"Item No"',
        '"Store Code"',
        {"path": "rev", "kind": "number"},
    )
    assert explained(tmp_path) == []


def test_parquet_is_read_where_pyarrow_is_installed(init: Init, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = arrow.table({"sku": ["a", "b"], "shop": ["x", "x"], "revision": [1, 2]})
    parquet.write_table(rows, tmp_path / "p.parquet")
    assert init("--entity", "item", "--source-files", "p.parquet", "--third-party-url", PARTNER).exit_code == 0
    assert part_of(tmp_path)["key"] == "sku"


# OpenAPI documents --------------------------------------------------------------------------------------------------


def from_document(init: Init, name: str, entity: str, *more: str) -> Result:
    result = init("--entity", entity, "--from", str(DOCUMENTS / name), *more)
    assert result.exit_code == 0, result.output
    text = Path("sync.yaml").read_text()
    document = yaml.safe_load(text)
    if not marked_lines(text):
        assert list(Draft202012Validator(json_schema()).iter_errors(document)) == []
        assert parse_config(text, "sync.yaml").entities.keys() == {entity}
    return result


def test_a_shop_is_proposed_from_its_document(init: Init, tables: str, tmp_path: Path) -> None:
    result = from_document(init, "shop.yaml", "product", "--source-url", tables)
    target, mapping = target_of(tmp_path), written(tmp_path)["entities"]["product"]["mapping"]
    assert "guessed key: sku (unique, and a field of this name holds it there)" in result.stdout
    assert written(tmp_path)["third_parties"]["partner"]["base_url"] == "https://eu.shop.example.com/api/v2"
    assert '# auth: {kind: bearer, token: "${API_TOKEN}"}' in (tmp_path / "sync.yaml").read_text()
    assert mapping == {
        "sku": "key",
        "store_id": "group",
        "title": "backoffice.title",
        "price": "backoffice.price",
        "tax_class": "TODO",
    }
    assert (target["ids"], target["key_field"], target["id"], target["group"]) == ("theirs", "sku", "id", "store_id")
    assert target["revision"] == {"header": "ETag"}
    assert target["create"] == {"method": "POST", "path": "/products"}
    assert target["update"] == {
        "method": "PUT",
        "path": "/products/{{ id }}",
        "headers": {"If-Match": "{{ revision }}"},
    }
    assert target["delete"] == {"method": "DELETE", "path": "/products/{{ id }}"}
    assert target["lookup"] == {"path": "/products", "params": {"sku": "{{ key }}"}, "items": "products"}
    assert target["list"] == {
        "path": "/products",
        "items": "products",
        "paging": "page",
        "size": 50,
        "params": {"store_id": "{{ group }}", "page": "{{ page }}", "per_page": "{{ limit }}"},
    }
    [line] = explained(tmp_path)
    assert (
        "POST /products requires it (string, one of full, reduced)"
        in (tmp_path / "sync.yaml").read_text().splitlines()[line - 1]
    )


def test_a_content_system_with_wrapped_bodies_is_proposed(init: Init, tmp_path: Path) -> None:
    from_document(
        init,
        "cms.json",
        "article",
        "--source-url",
        "https://x.example.com",
        "--key",
        "slug",
        "--group",
        "channel",
        "--fields",
        "title,body",
        "--third-party-url",
        PARTNER,
    )
    target = target_of(tmp_path)
    assert target["create"] == {
        "method": "POST",
        "path": "/articles",
        "body": {"data": "{{ payload }}"},
        "record": "data",
    }
    assert (target["update"]["method"], target["update"]["body"]) == ("PATCH", {"data": "{{ payload }}"})
    assert target["read"] == {"path": "/articles/{{ id }}", "record": "data"}
    assert (target["id"], target["key_field"], target["group"]) == ("documentId", "slug", "channel")
    assert target["lookup"]["params"] == {"filters[slug][$eq]": "{{ key }}"}
    assert target["list"] == {
        "path": "/articles",
        "items": "data",
        "paging": "page",
        "params": {
            "filters[channel][$eq]": "{{ group }}",
            "pagination[page]": "{{ page }}",
            "pagination[pageSize]": "{{ limit }}",
        },
    }
    assert target["delete"] == "TODO"
    assert len(explained(tmp_path)) == 1


def test_an_erp_with_nested_paths_is_proposed_with_the_parent_as_business_group(init: Init, tmp_path: Path) -> None:
    from_document(
        init,
        "erp.yaml",
        "item",
        "--source-url",
        "https://x.example.com",
        "--key",
        "number",
        "--group",
        "company",
        "--fields",
        "displayName,unitPrice",
    )
    target = target_of(tmp_path)
    assert target["create"]["path"] == "/companies/{{ group }}/items"
    assert target["update"]["headers"] == {"Content-Type": "application/merge-patch+json"}
    assert target["delete"]["path"] == "/companies/{{ group }}/items/{{ id }}"
    assert target["lookup"]["params"]["$filter"] == "number eq {{ key | odata }}"
    assert (target["list"]["items"], target["list"]["paging"]) == ("value", "offset")
    assert target["list"]["params"] == {"$top": "{{ limit }}", "$skip": "{{ offset }}", "api-version": "TODO"}
    assert len(explained(tmp_path)) == 7, "the unit, and the version of the API in six calls"


def test_a_document_that_fastapi_made_is_proposed_with_our_ids(init: Init, tables: str, tmp_path: Path) -> None:
    from_document(
        init, "fastapi.json", "item", "--source-url", tables, "--source-table", "products", "--third-party-url", PARTNER
    )
    target = target_of(tmp_path)
    assert (target["ids"], target["key_field"], target["upsert"]) == ("ours", "sku", "create_first")
    assert target["create"]["path"] == "/items/"
    assert target["update"] == {"method": "PUT", "path": "/items/{{ id }}"}
    assert target["list"] == {
        "path": "/items/",
        "paging": "offset",
        "params": {"shop": "{{ group }}", "skip": "{{ offset }}", "limit": "{{ limit }}"},
    }
    assert written(tmp_path)["entities"]["item"]["mapping"]["shop"] == "group"
    assert len(explained(tmp_path)) == 1, "the name, which the table calls title"


def test_a_rest_source_is_read_from_its_document(init: Init, tmp_path: Path) -> None:
    result = init(
        "--entity",
        "item",
        "--source-from",
        str(DOCUMENTS / "fastapi.json"),
        "--source-url",
        "http://127.0.0.1:8000",
        "--third-party-url",
        PARTNER,
    )
    assert result.exit_code == 0, result.output
    part = part_of(tmp_path)
    assert (part["key"], part["group"], part["version"]) == ("sku", "shop", {"path": "updated_at", "kind": "time"})
    assert part["list"] == {
        "path": "/items/",
        "paging": "offset",
        "params": {"shop": "{{ group }}", "skip": "{{ offset }}", "limit": "{{ limit }}"},
    }
    assert part["read"] == {"path": "/items/{{ key }}"}
    assert explained(tmp_path) == []


def test_a_document_is_read_from_a_url_and_its_server_is_relative_to_that(
    init: Init,
    server: Server,
    tmp_path: Path,
) -> None:
    async def document(request: Request) -> Response:
        return Response((DOCUMENTS / "cms.json").read_bytes(), media_type="application/json")

    server.handler = document
    result = init(
        "--entity", "article", "--from", f"{server.url}/docs/openapi.json", "--source-url", "https://x.example.com"
    )
    assert result.exit_code == 0, result.output
    assert written(tmp_path)["third_parties"]["partner"]["base_url"] == f"{server.url}/api"


def test_a_collection_that_is_not_certain_is_to_be_named(init: Init, tmp_path: Path) -> None:
    result = init("--entity", "thing", "--from", str(DOCUMENTS / "shop.yaml"), "--source-url", "https://x.example.com")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "--third-party-path; expected one of: /products, /orders" in result.stderr
    assert (
        init(
            "--entity",
            "thing",
            "--from",
            str(DOCUMENTS / "shop.yaml"),
            "--source-url",
            "https://x.example.com",
            "--third-party-path",
            "products/",
        ).exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "no OpenAPI document"),
        ("swagger: '2.0'", "found Swagger 2.0"),
        ("openapi: 3.0.0", "no operations under 'paths'"),
        ("openapi: 3.0.0\npaths: {/a: {get: []}}", "no operations"),
    ],
)
def test_what_is_no_document_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "openapi.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_document(str(path))
    assert said in str(caught.value)


def test_references_in_a_circle_and_to_nowhere_end() -> None:
    document = OpenApiDocument(
        "x",
        {
            "components": {
                "schemas": {
                    "A": {"$ref": "#/components/schemas/B"},
                    "B": {"$ref": "#/components/schemas/A"},
                    "C": {
                        "allOf": [
                            {"$ref": "#/components/schemas/C"},
                            {"properties": {"a": {"$ref": "#/components/schemas/C"}}},
                        ]
                    },
                }
            }
        },
    )
    assert document.resolve_schema({"$ref": "#/components/schemas/A"}) == {}
    assert document.resolve_schema({"$ref": "other.yaml#/A"}) == {}
    assert document.list_properties({"$ref": "#/components/schemas/C"}).keys() == {"a"}


def test_the_word_todo_is_an_ordinary_value_where_no_comment_marks_it() -> None:
    text = "sources: {a: {base_url: TODO}}  # a board\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "sync.yaml")
    assert "is to be filled in" not in str(caught.value)
