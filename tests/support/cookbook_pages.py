"""The pages of the cookbook, as tests take them apart."""

from __future__ import annotations

from typing import Any

import yaml
from markdown_it import MarkdownIt
from paths import ROOT

from sync_orchestrator.config.loading import Yaml

FOLDER = ROOT / "docs" / "cookbook"

SERVER_PAGES = {"couchdb", "datasette", "directus", "odata", "parse-server", "tryton", "vendure"}
"""Pages with a whole ``sync.yaml`` for a server that exists; ``third_parties`` runs all but Directus's and Tryton's."""


def fences(page: str) -> list[tuple[str, str]]:
    """Language and content of a page's fences."""
    return fences_of((FOLDER / f"{page}.md").read_text(encoding="utf-8"))


def fences_of(text: str) -> list[tuple[str, str]]:
    """Language and content of the fences of a text."""
    tokens = MarkdownIt("commonmark").parse(text)
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


def parse_yaml(text: str) -> Any:
    """A YAML document, read as the project reads ``sync.yaml``."""
    return yaml.load(text, Loader=Yaml)


def merge(old: Any, new: Any) -> Any:
    """``old`` with all that ``new`` says; objects are merged field by field."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: merge(old.get(name), value) for name, value in new.items()}}
    return new
