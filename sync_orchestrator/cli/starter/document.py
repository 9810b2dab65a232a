"""The start of a ``sync.yaml``: a commented file made from a few answers (its text is ``starter.yaml``)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined

from sync_orchestrator import config as configuration
from sync_orchestrator.cli.starter.columns import Guess, Guesses
from sync_orchestrator.cli.starter.lines import TODO, Value, mark_todo, quote_text, yaml_lines
from sync_orchestrator.cli.starter.proposals import ThirdPartyProposal
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.errors import ConfigError

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
    source_kind: Literal["rest", "sql", "files"] = "rest"
    source_settings: Mapping[str, object] = field(default_factory=dict)
    """Of a source that is no REST API: its ``kind`` and where it is."""
    guesses: Guesses | None = None
    """What was guessed from the source's columns; the lines say why."""
    part: Mapping[str, Any] = field(default_factory=dict)
    """The source's calls, its table or its files, where they are known."""
    proposal: ThirdPartyProposal | None = None
    """What an OpenAPI document says of the third party."""
    login_lines: tuple[str, ...] = ()
    """Offered as comments: how the third party knows who calls it."""


def start_of(answers: Answers) -> str:
    """The text of a ``sync.yaml`` that is in order.

    Raises ConfigError where an answer cannot be part of one.
    """
    for what in ("entity", "source", "third_party"):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", getattr(answers, what)):
            raise ConfigError(f"--{what.replace('_', '-')}: small letters, digits and _, such as product")
    values = {each.name: getattr(answers, each.name) for each in fields(answers)}
    for what in ("source_path", "third_party_path"):
        values[what] = "/" + (values[what] or f"{answers.entity}s").strip("/")
    values["key_name"], values["group_name"] = _last_name(answers.key, "key"), _last_name(answers.group, "group")
    if values["key_name"] == "id" and answers.ids == "theirs":
        values["key_name"] = "external_id"  # their own ids stand at 'id'
    values["fields"] = [name for name in answers.fields if name not in (answers.key, answers.group)]  # they have lines
    values |= _prepare_sections(answers)
    environment = Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    environment.filters["tojson"] = quote_text
    template = Path(__file__).with_name("starter.yaml").read_text(encoding="utf-8")
    text: str = environment.from_string(template).render(values)
    try:
        configuration.parse_config(text, "sync.yaml")
    except ConfigError as error:
        if not _is_only_marks(str(error), text):
            raise
    return text


def marked_lines(text: str) -> list[int]:
    """The numbers of the lines that have to be filled in before ``check`` takes the file."""
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if f"# {TODO}: " in line and re.search(rf"\b{TODO}\b", line.partition("#")[0])
    ]


def _is_only_marks(complaints: str, text: str) -> bool:
    marked = {f"sync.yaml:{number}" for number in marked_lines(text)}
    return all(
        line.rpartition(": ")[0].startswith(tuple(f"{mark}: " for mark in marked)) for line in complaints.splitlines()
    )


def _prepare_sections(answers: Answers) -> dict[str, str]:
    """The sections that are made line by line."""
    made: dict[str, str] = {}

    def format_lines(content: Mapping[str, object], indent: int) -> str:
        return "".join(f"{line}\n" for line in yaml_lines(content, indent))

    if answers.source_settings:
        made["source_settings"] = format_lines(answers.source_settings, 4)
    if answers.guesses is not None:
        guesses = answers.guesses
        made["guessed_part"] = format_lines(
            {
                "key": _guess_value(answers.key, guesses.key, "the column that names a record"),
                "group": _guess_value(
                    answers.group, guesses.group, "the column that splits the records in parts of reasonable size"
                ),
                "version": {
                    "path": _guess_value(
                        answers.version, guesses.version, "a time or number that grows with each change"
                    ),
                    "kind": answers.version_kind,
                },
            },
            8,
        )
    if answers.part:
        made["part_lines"] = format_lines(answers.part, 8)
    if answers.proposal is not None:
        made["mapping_lines"] = format_lines(answers.proposal.mapping, 6) + "".join(
            f"      # {line}\n" for line in yaml_lines(answers.proposal.optional, 0)
        )
        made["target_lines"] = format_lines(answers.proposal.settings, 6)
    return made


def _guess_value(value: str, guess: Guess, meaning: str) -> Value:
    if not value or value == TODO:
        return mark_todo(f"{guess.why}: {meaning}")
    return Value(value, f"guessed: {guess.why}" if value == guess.value else "")


def check_free(path: Path, *, force: bool) -> None:
    """Raises ConfigError where there is a configuration already, unless it may be overwritten."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force overwrites it")


def write_start(text: str, path: Path) -> None:
    """Writes a start and, beside it, the schema for editors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (path.parent / SCHEMA).write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")


def _last_name(expression: str, otherwise: str) -> str:
    """What ``meta.sku`` is called where it does not stand inside anything; ``otherwise`` where it is unknown."""
    if expression == TODO:
        return otherwise
    names: list[str] = re.findall(r"\w+", expression)
    return names[-1] if names else expression
