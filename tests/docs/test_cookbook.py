"""The cookbook as a reader takes it: each page's YAML is run through the conformance test against a server that behaves
as the page says, and the calls that it shows are those that were made.

A page begins where its YAML stands in a fence; a fence ``text`` behind it has the calls.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cookbook_servers as servers
import pytest
import yaml
from cookbook_pages import FOLDER, SERVER_PAGES, fences, merge, parse_yaml
from http_server import Server

from sync_orchestrator import config as configuration
from sync_orchestrator.conformance import run_conformance

SAMPLES = [
    {"code": "k1", "store": "A", "name": "a lamp", "price": 9.5, "stock": 3, "active": True},
    {"code": "k1", "store": "A", "name": "a lämp", "price": 0.25, "stock": 0, "active": False},
]
BASE = """
sources:
  shop: {base_url: "${ERP_URL}"}
third_parties:
  erp: {base_url: "${ERP_URL}", search_lag: 0s}
entities:
  product:
    owner: shop
    parts:
      shop: {key: sku, group: store, version: {path: v, kind: number}, list: {path: /things}}
    mapping: {code: key, store: group, name: shop.name, price: shop.price, stock: shop.stock, active: shop.active}
"""


@dataclass(frozen=True)
class Recipe:
    """One YAML of a page, the server that it is for, and what of the conformance test it has no capability for."""

    page: str
    number: int
    server: Callable[[], servers.ThirdParty]
    without: set[str] = field(default_factory=set)


NO_BULK = {"bulk-results-are-item-by-item"}
NO_LOOKUP = {"lookup-finds-by-key"}
NO_LOGIN = {"wrong-login-is-told"}
ONE_PAGE = {"list-has-more-than-one-page"}
LOOKED_UP = {"repeated-create-makes-no-duplicate"}
OURS = NO_BULK | NO_LOOKUP | NO_LOGIN | ONE_PAGE
THEIRS = NO_BULK | NO_LOGIN | ONE_PAGE | LOOKED_UP
COUNTLESS = {"count-agrees-with-list"}

RECIPES = [
    Recipe("our-ids", 1, servers.OurIds, OURS),
    Recipe("their-ids", 1, servers.ThirdParty, THEIRS - ONE_PAGE),
    Recipe("idempotency", 1, servers.Unique, THEIRS - LOOKED_UP),
    Recipe("create-or-update", 1, servers.PostElsePatch, OURS),
    Recipe("create-or-update", 2, lambda: servers.PostElsePatch(empty=True), OURS),
    Recipe("bulk", 1, servers.BulkUpsert, OURS - NO_BULK),
    Recipe("bulk", 2, servers.AllOrNothing, OURS - NO_BULK),
    Recipe("revisions", 1, servers.ETags, OURS),
    Recipe("revisions", 2, servers.Revisions, OURS),
    Recipe("linked-calls", 1, servers.Linked, THEIRS),
    Recipe("linked-calls", 2, servers.LinkedByHalves, THEIRS),
    Recipe("linked-calls", 3, servers.LinkedByHalves, THEIRS),
    Recipe("business-groups", 1, servers.ThirdParty, THEIRS),
    Recipe("deletes", 1, servers.SoftDelete, OURS),
    Recipe("answers", 1, servers.AllIs200, THEIRS),
    Recipe("answers", 2, servers.ThirdParty, THEIRS - ONE_PAGE),
    *(
        Recipe("paging", number, lambda kind=kind: servers.Paged(kind), OURS - ONE_PAGE)  # type: ignore[misc]
        for number, kind in enumerate(("cursor", "link", "next_url", "page", "after", "start", "total"), 1)
    ),
    *(Recipe("counting", number, servers.Counted, OURS) for number in (1, 2, 3, 4)),
    *(
        Recipe("login", number, lambda kind=kind: servers.Doors(kind), OURS - NO_LOGIN)  # type: ignore[misc]
        for number, kind in enumerate(("basic", "bearer", "headers"), 1)
    ),
    Recipe("login", 4, lambda: servers.Doors("login"), OURS),
    Recipe("throttling", 1, servers.Busy, OURS),
    Recipe("references", 1, servers.Stores, THEIRS | COUNTLESS),
    Recipe("values", 1, servers.Shapes, OURS),
    Recipe("keys-in-paths", 1, servers.Tilde, OURS),
    Recipe("one-address", 1, servers.OneAddress, THEIRS | COUNTLESS),
    Recipe("one-address", 2, servers.OneAddress, THEIRS | COUNTLESS),
]


def yaml_and_calls(recipe: Recipe) -> tuple[str, list[str]]:
    found = fences(recipe.page)
    places = [place for place, (language, _) in enumerate(found) if language == "yaml"]
    place = places[recipe.number - 1]
    behind = found[place + 1 : place + 2]
    calls = [line for language, text in behind if language == "text" for line in text.splitlines() if line.strip()]
    return found[place][1], calls


def ordered(call: str) -> str:
    """A call with its parameters in order of their names."""
    place, _, query = call.strip().partition("?")
    return f"{place}?{'&'.join(sorted(query.split('&')))}" if query else place


def pattern(line: str) -> str:
    """A call as a page shows it: ``{…}`` stands for anything but a slash, ``…`` for anything."""
    pieces = re.split(r"(\{[^}]*\}|…)", line.strip())
    return "".join(".*" if piece == "…" else "[^/]*" if piece.startswith("{") else re.escape(piece) for piece in pieces)


@pytest.mark.parametrize("recipe", [pytest.param(recipe, id=f"{recipe.page}-{recipe.number}") for recipe in RECIPES])
async def test_recipe(recipe: Recipe, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.handler = recipe.server()
    monkeypatch.setenv("ERP_URL", server.url)
    monkeypatch.setenv("ERP_SECRET", "secret")
    text, calls = yaml_and_calls(recipe)
    path = tmp_path / "sync.yaml"
    path.write_text(yaml.safe_dump(merge(parse_yaml(BASE), parse_yaml(text))))
    config = configuration.load(path)
    report = await run_conformance(config, "product", samples=SAMPLES, group="A", other_group="B", odd_keys=True)
    endings = {ending.behaviour: ending for ending in report.endings}
    failed = {name: (ending.came, ending.expected) for name, ending in endings.items() if ending.outcome == "failed"}
    assert failed == {}
    skipped = {name: ending.came for name, ending in endings.items() if ending.outcome == "skipped"}
    assert skipped.keys() == recipe.without, skipped
    assert calls, "the page shows no calls"
    assert_made(calls, server)


def assert_made(calls: list[str], server: Server) -> None:
    """Each of the calls that a page shows was made."""
    made = {
        ordered(f"{method} {path}?" + "&".join(f"{name}={value}" for name, value in query.items()))
        for method, path, query in server.seen
    }
    for line in calls:
        wanted = re.compile(pattern(ordered(line)), re.DOTALL)
        assert any(wanted.fullmatch(call) for call in made), f"{line}: not among {sorted(made)[:40]}"


SOURCES = {
    "source-rest": ["shop"],
    "source-sql": ["shop"],
    "source-files": ["shop"],
    "several-sources": ["shop", "stock"],
}
HEAD = "sku;store;name;updated_at\n"


def as_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE products (sku TEXT PRIMARY KEY, store TEXT, name TEXT, updated_at TEXT, published INTEGER)"
        )
        connection.executemany(
            "INSERT INTO products VALUES (:sku, :store, :name, :updated_at, 1)", servers.Sources().products
        )


@pytest.mark.parametrize(("page", "part"), [(page, part) for page, parts in SOURCES.items() for part in parts])
async def test_recipe_of_a_source(
    page: str, part: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.handler = servers.Sources()
    as_table(tmp_path / "shop.db")
    lines = [";".join(str(row[name]) for name in HEAD.strip().split(";")) for row in servers.Sources().products]
    (tmp_path / "products-1.csv").write_text(HEAD + "\n".join(lines[:30]) + "\n")
    (tmp_path / "products-2.csv").write_text(HEAD + "\n".join(lines[30:]) + "\n")
    url = f"sqlite:///{tmp_path / 'shop.db'}" if page == "source-sql" else server.url
    for name, value in {"SHOP_URL": url, "SHOP_FOLDER": str(tmp_path), "ERP_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    text, calls = yaml_and_calls(Recipe(page, 1, servers.ThirdParty))
    base = parse_yaml(BASE)
    told = parse_yaml(text)
    base["sources"], base["entities"]["product"]["parts"] = {}, {}
    base["entities"]["product"]["third_party"] = parse_yaml(yaml_and_calls(RECIPES[0])[0])["entities"]["product"][
        "third_party"
    ]
    if page in ("source-sql", "source-files"):  # whose columns are these
        base["entities"]["product"]["mapping"] = {"code": "key", "store": "group", "name": "shop.name"}
    path = tmp_path / "sync.yaml"
    path.write_text(yaml.safe_dump(merge(base, told)))
    report = await run_conformance(configuration.load(path), "product", part=part, group="A")
    failed = {
        ending.behaviour: (ending.came, ending.expected) for ending in report.endings if ending.outcome == "failed"
    }
    assert failed == {}
    assert sum(ending.outcome == "passed" for ending in report.endings) >= 3
    server_side = part != "stock" if page == "several-sources" else True
    assert_made([line for line in calls if ("/warehouse" in line) is not server_side], server)


@pytest.mark.parametrize("page", sorted(SERVER_PAGES))
def test_the_page_of_a_server_is_one_whole_sync_yaml(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (text,) = [text for language, text in fences(page) if language == "yaml"]
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "http://127.0.0.1:1" if name.endswith("_URL") else "secret")
    path = tmp_path / "sync.yaml"
    path.write_text(text, encoding="utf-8")
    assert "product" in configuration.load(path).entities


def test_every_yaml_of_every_page_is_run() -> None:
    told = {
        (page.stem, number)
        for page in FOLDER.glob("*.md")
        if page.stem not in {"README", *SERVER_PAGES}
        for number, _ in enumerate([1 for language, _ in fences(page.stem) if language == "yaml"], 1)
    }
    stories = {("erp-story", 1), ("erp-story", 2)}  # ``test_erp_story.py``
    assert told == {(recipe.page, recipe.number) for recipe in RECIPES} | {(page, 1) for page in SOURCES} | stories


def test_the_index_names_every_page() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w[\w-]*)\.md\)", text)) == {page.stem for page in FOLDER.glob("*.md")} - {"README"}
