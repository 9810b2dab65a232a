"""Rules of the layout that import-linter cannot say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

import sync_orchestrator

PACKAGE = Path(sync_orchestrator.__file__).parent
PROGRAMS = ("sync_orchestrator", "tests", "demo", "bench", "examples")


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    """All nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def imported_modules(file: Path) -> Iterator[str]:
    """The dotted names that a module imports: modules, or names in modules."""
    for node in nodes_of(file):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def foreign_queries(file: Path) -> set[str]:
    """The modules of queries that a module imports and that belong to another package."""
    found = set()
    for name in imported_modules(file):
        words = name.split(".")
        queries = next((at for at, word in enumerate(words) if word.endswith("queries")), None)
        if queries is None or words[0] != PACKAGE.name:
            continue
        owner = PACKAGE.joinpath(*words[1:queries])
        if not file.is_relative_to(owner):
            found.add(".".join(words[: queries + 1]))
    return found


def test_a_package_runs_its_own_queries_only() -> None:
    found = {str(file.relative_to(PACKAGE)): foreign_queries(file) for file in PACKAGE.rglob("*.py")}
    assert {file: modules for file, modules in found.items() if modules} == {}


def test_queries_of_another_package_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / PACKAGE.name
    (package / "core" / "push").mkdir(parents=True)
    (package / "api").mkdir()
    text = "from sync_orchestrator.core.push import queries as push_queries\n"
    for place in ("core/push/claims.py", "api/health.py"):
        (package / place).write_text(text)
    monkeypatch.setattr("test_layout.PACKAGE", package)
    assert foreign_queries(package / "core/push/claims.py") == set()
    assert foreign_queries(package / "api/health.py") == {"sync_orchestrator.core.push.queries"}


def class_places(package: Path) -> dict[str, list[str]]:
    """For each name of a class the modules in which a class has it."""
    places: dict[str, list[str]] = {}
    for file in sorted(package.rglob("*.py")):
        for node in nodes_of(file):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(package)))
    return places


def test_no_class_name_exists_twice() -> None:
    assert {name: files for name, files in class_places(PACKAGE).items() if len(files) > 1} == {}


def test_modules_that_docstrings_name_exist() -> None:
    files = [file.relative_to(ROOT).as_posix() for part in PROGRAMS for file in (ROOT / part).rglob("*.py")]
    known = {"/".join(words[at:]) for words in (file.split("/") for file in files) for at in range(len(words))}
    missing = {
        f"{file}: {name}"
        for file in files
        for name in re.findall(r"``([\w/]+\.py)``", (ROOT / file).read_text(encoding="utf-8"))
        if name not in known
    }
    assert missing == set()
