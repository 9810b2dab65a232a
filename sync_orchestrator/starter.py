"""The start of a ``sync.yaml``: a commented file made from a few answers (its text is ``starter.yaml``).

Not here: the questions (``cli/configuration.py``), what a setting means (``config/``).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sync_orchestrator import config as configuration
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.core.errors import ConfigError

SCHEMA = "sync.schema.json"
"""The file, beside ``sync.yaml``, by which an editor checks it."""


@dataclass(frozen=True)
class Answers:
    """What is asked. Names of fields are JMESPath expressions; paths are below the URLs."""

    entity: str
    source_url: str
    third_party_url: str
    key: str = "id"
    version: str = "updated_at"
    group: str = "shop"
    version_kind: str = "time"
    fields: tuple[str, ...] = ()
    source: str = "backoffice"
    third_party: str = "partner"
    source_path: str = ""
    third_party_path: str = ""
    source_items: str = "@"
    third_party_items: str = "@"
    groups_path: str = ""
    ids: str = "theirs"


def start_of(answers: Answers) -> str:
    """The text of a ``sync.yaml`` that is in order.

    Raises ConfigError where an answer cannot be part of one.
    """
    for what in ("entity", "source", "third_party"):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", getattr(answers, what)):
            raise ConfigError(f"--{what.replace('_', '-')}: small letters, digits and _, such as product")
    values = asdict(answers)
    for what in ("source_path", "third_party_path"):
        values[what] = "/" + (values[what] or f"{answers.entity}s").strip("/")
    values["key_name"], values["group_name"] = _last_name(answers.key), _last_name(answers.group)
    if values["key_name"] == "id" and answers.ids == "theirs":
        values["key_name"] = "external_id"  # their own ids stand at 'id'
    environment = Environment(
        variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, keep_trailing_newline=True,
        undefined=StrictUndefined, autoescape=False)
    environment.filters["tojson"] = _quoted
    template = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    text: str = environment.from_string(template).render(values)
    configuration.read(text, "sync.yaml")
    return text


def check_free(path: Path, *, force: bool) -> None:
    """Raises ConfigError where there is a configuration already, unless it may be overwritten."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force overwrites it")


def write(text: str, path: Path) -> None:
    """Writes a start and, beside it, the schema for editors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (path.parent / SCHEMA).write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")


def _last_name(expression: str) -> str:
    """What ``meta.sku`` is called where it does not stand inside anything."""
    names: list[str] = re.findall(r"\w+", expression)
    return names[-1] if names else expression


def _quoted(text: str) -> str:
    """As plain as YAML allows."""
    is_plain = re.fullmatch(r"[A-Za-z_/][\w/.:-]*", text) and text.lower() not in (
        "y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if is_plain and ": " not in text else json.dumps(text)
