"""Puts together what ``init`` writes: from options, questions, tables, files and OpenAPI documents."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from sync_orchestrator.cli.starter import database, samples
from sync_orchestrator.cli.starter.calls import propose_part, propose_third_party
from sync_orchestrator.cli.starter.columns import (
    Column,
    Guesses,
    copied_columns,
    guess_columns,
    plain_name,
    version_kind_of,
)
from sync_orchestrator.cli.starter.document import Answers
from sync_orchestrator.cli.starter.lines import TODO
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, read_document
from sync_orchestrator.cli.starter.openapi_columns import propose_columns
from sync_orchestrator.cli.starter.proposals import Names
from sync_orchestrator.cli.starter.request_bodies import writable_fields
from sync_orchestrator.cli.starter.resources import Resource, find_resource, join_step
from sync_orchestrator.errors import ConfigError

Say = Callable[[str], None]


class Ask(Protocol):
    """Gives the value of an option, or asks for it; raises NotFound where there is none and nothing may be asked."""

    def __call__(self, option: str, value: str | None, question: str, default: str | None = None) -> str:
        """Returns ``value`` where it is given, else the response to ``question``, or ``default``."""
        ...


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What the options of ``init`` say; None and empty texts where they say nothing."""

    entity: str | None = None
    source_url: str | None = None
    third_party_url: str | None = None
    key: str | None = None
    version: str | None = None
    version_kind: Literal["time", "number"] | None = None
    group: str | None = None
    fields: str | None = None
    source: str = "backoffice"
    third_party: str = "partner"
    source_path: str = ""
    third_party_path: str = ""
    source_items: str = "@"
    third_party_items: str = "@"
    groups_path: str = ""
    ids: str = "theirs"
    source_table: str | None = None
    source_files: str | None = None
    source_document: str | None = None
    third_party_document: str | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """A source whose columns could be read."""

    kind: Literal["rest", "sql", "files"]
    columns: tuple[Column, ...]
    what: str
    settings: dict[str, Any]
    part: dict[str, Any]
    url: str = ""
    document: OpenApiDocument | None = None
    resource: Resource | None = None


def gather_answers(given: InitOptions, ask: Ask, say: Say) -> Answers:
    """Reads what there is to read, guesses, asks for the rest, and says what was guessed.

    Raises ConfigError where a database, a file or a document cannot be read, NotFound where an answer is missing.
    """
    entity = ask("--entity", given.entity, "What is a record? (product, order, stock …)")
    document = None if given.source_document is None else read_document(given.source_document)
    given = _with_place(given, document, ask)
    source = _read_source(given, document, entity, ask, say)
    service = _read_service(given, entity, say)
    if source is None:
        answers = _answers_without_columns(given, entity, ask)
    else:
        answers = _answers_by_columns(
            given, entity, source, [] if service is None else writable_fields(*service), ask, say
        )
    if service is None:
        return replace(
            answers,
            third_party_url=ask(
                "--third-party-url", given.third_party_url, "Where is the service that is kept in sync?"
            ),
        )
    return _with_proposal(given, answers, *service, ask)


def _read_service(given: InitOptions, entity: str, say: Say) -> tuple[OpenApiDocument, Resource] | None:
    """The document of the third party and the resource that the entity is there; None without a document."""
    if given.third_party_document is None:
        return None
    document = read_document(given.third_party_document)
    resource = find_resource(document, entity, given.third_party_path)
    say(f"{document.source}: {', '.join(operation.title for operation in resource.operations)}")
    return document, resource


def _with_place(given: InitOptions, document: OpenApiDocument | None, ask: Ask) -> InitOptions:
    """The same with the address of the source, or its files."""
    if given.source_files is not None:
        return given
    known = given.source_url or (document.server if document is not None else None)
    url = ask("--source-url", known, "Where is your own system? (https://…, a database URL, or a file)")
    if re.search(r"\.(csv|tsv|txt|jsonl|ndjson|parquet)$", url) and "://" not in url:
        return replace(given, source_files=url)
    return replace(given, source_url=url)


def _read_source(
    given: InitOptions, document: OpenApiDocument | None, entity: str, ask: Ask, say: Say
) -> _Source | None:
    """The source's columns; None for a REST API without a document."""
    if given.source_files is not None:
        return _read_files(given.source_files)
    url = given.source_url or ""
    if "://" not in url:
        return None  # refused with its line when the file is checked
    if not url.startswith(("http://", "https://")):
        return _read_database(given, url, entity, ask, say)
    if document is None:
        return None
    resource = find_resource(document, entity, given.source_path, reads=True)
    columns = propose_columns(document, resource)
    return _Source("rest", columns, f"{document.source}, {resource.path}", {}, {}, url, document, resource)


def _read_files(pattern: str) -> _Source:
    sample = samples.read_sample(pattern)
    files: dict[str, object] = {"glob": sample.glob}
    if not sample.is_by_suffix:
        files["format"] = sample.format
    if sample.format != "parquet":
        if sample.encoding != "utf-8":
            files["encoding"] = sample.encoding
        if sample.format == "csv" and sample.delimiter != ",":
            files["delimiter"] = sample.delimiter
    return _Source(
        "files",
        sample.columns,
        f"{sample.rows} rows of {pattern}",
        {"kind": "files", "folder": str(sample.folder)},
        {"files": files},
    )


def _read_database(given: InitOptions, text: str, entity: str, ask: Ask, say: Say) -> _Source:
    url = database.database_url(text)
    name = given.source_table
    if name is None:
        tables = database.list_tables(url)
        if not tables:
            raise ConfigError("--source-url: the database has no tables")
        names = {plain_name(entity), plain_name(entity) + "s", plain_name(entity) + "es"}
        names |= {plain_name(entity)[:-1] + "ies"} if entity.endswith("y") else set()
        fitting = [table for table in tables if plain_name(table.rpartition(".")[2]) in names]
        say(f"tables: {', '.join(tables)}")
        name = ask(
            "--source-table", None, "Which table or view has the records?", fitting[0] if len(fitting) == 1 else None
        )
    table = database.read_table(url, name)
    shown = url.render_as_string(hide_password=False)
    if url.password is not None:
        variable = f"{given.source.upper()}_URL"
        os.environ.setdefault(variable, shown)
        say(f"The database's URL holds a password, so it is not written: export {variable} with it.")
        shown = f"${{{variable}}}"
    return _Source("sql", table.columns, f"table {name}", {"kind": "sql", "url": shown}, {"sql": {"table": name}})


def _answers_by_columns(
    given: InitOptions,
    entity: str,
    source: _Source,
    theirs: Sequence[str],
    ask: Ask,
    say: Say,
) -> Answers:
    by_expression = {join_step("@", column.name): column for column in source.columns}
    options = (given.key, given.version, given.group)
    guesses = guess_columns(source.columns, entity, theirs, _names_of(by_expression, options))
    say(f"{source.what} has {', '.join(column.name for column in source.columns) or 'no columns'}")
    for what, option, guess in zip(
        ("key", "version", "group"), options, (guesses.key, guesses.version, guesses.group), strict=True
    ):
        if option is None:
            say(f"guessed {what}: {guess.value or 'nothing'} ({guess.why})")
    chosen = [
        ask(option, value, question, join_step("@", guess.value) if guess.value else TODO)
        for option, value, question, guess in (
            ("--key", given.key, "Which field names a record?", guesses.key),
            ("--version", given.version, "Which field grows with each change?", guesses.version),
            ("--group", given.group, "Which field splits the records in groups?", guesses.group),
        )
    ]
    key, version, group = chosen
    fields, left_out = copied_columns(source.columns, _names_of(by_expression, chosen))
    if left_out:
        say(f"left out, binary or secret by their names: {', '.join(left_out)}")
    copied = [join_step("@", name) for name in fields]
    names = _split_words(
        ask("--fields", given.fields, "Which fields are copied? (separated by commas)", ",".join(copied) or "name")
    )
    expressions = [
        join_step("@", guess.value) if guess.value else None for guess in (guesses.key, guesses.version, guesses.group)
    ]
    part = dict(source.part)
    if source.kind == "sql" and TODO not in (key, group):
        say(f"With an index on ({group}, {key}), each page of a listing costs the same.")
    if source.document is not None and source.resource is not None:
        part = propose_part(source.document, source.resource, Names(key, None if group == TODO else group))
    kind = given.version_kind or (
        guesses.version_kind
        if version == expressions[1]
        else version_kind_of(by_expression[version])
        if version in by_expression
        else "time"
    )
    return Answers(
        entity=entity,
        source_url=source.url or "https://localhost",
        third_party_url="",
        key=key,
        version=version,
        group=group,
        version_kind=kind,
        fields=names,
        source=given.source,
        third_party=given.third_party,
        source_path=given.source_path,
        third_party_path=given.third_party_path,
        third_party_items=given.third_party_items,
        groups_path=given.groups_path,
        ids=given.ids,
        source_kind=source.kind,
        source_settings=source.settings,
        part=part,
        guesses=_as_expressions(guesses, expressions),
    )


def _names_of(by_expression: Mapping[str, Column], chosen: Iterable[str | None]) -> set[str]:
    """The names of the columns that expressions name; other expressions name none."""
    return {by_expression[each].name for each in chosen if each is not None and each in by_expression}


def _as_expressions(guesses: Guesses, expressions: Sequence[str | None]) -> Guesses:
    key, version, group = (
        replace(guess, value=expression)
        for guess, expression in zip((guesses.key, guesses.version, guesses.group), expressions, strict=True)
    )
    return replace(guesses, key=key, version=version, group=group)


def _answers_without_columns(given: InitOptions, entity: str, ask: Ask) -> Answers:
    return Answers(
        entity=entity,
        source_url=given.source_url or "",
        third_party_url="",
        key=ask("--key", given.key, "Which field names a record?", "id"),
        version=ask("--version", given.version, "Which field grows with each change?", "updated_at"),
        group=ask(
            "--group", given.group, "Which field splits the records in groups? (shop, store, merchant …)", "shop"
        ),
        fields=_split_words(ask("--fields", given.fields, "Which fields are copied? (separated by commas)", "name")),
        version_kind=given.version_kind or "time",
        source=given.source,
        third_party=given.third_party,
        source_path=given.source_path,
        third_party_path=given.third_party_path,
        source_items=given.source_items,
        third_party_items=given.third_party_items,
        groups_path=given.groups_path,
        ids=given.ids,
    )


def _with_proposal(
    given: InitOptions, answers: Answers, document: OpenApiDocument, resource: Resource, ask: Ask
) -> Answers:
    names = Names(_read_last_name(answers.key), None if answers.group == TODO else _read_last_name(answers.group))
    proposal = propose_third_party(
        document, resource, names, answers.source, [_read_last_name(name) for name in answers.fields]
    )
    url = ask(
        "--third-party-url", given.third_party_url or document.server, "Where is the service that is kept in sync?"
    )
    return replace(answers, third_party_url=url, proposal=proposal, login_lines=tuple(_login_lines(document)))


def _login_lines(document: OpenApiDocument) -> list[str]:
    lines = []
    for scheme in document.security_schemes():
        kind, how = scheme.get("type"), str(scheme.get("scheme", "")).lower()
        if kind == "apiKey" and scheme.get("in") == "header" and str(scheme.get("name")).lower() != "x-api-key":
            lines.append(f'headers: {{{scheme.get("name")}: "${{API_KEY}}"}}')
        elif kind == "http" and how == "bearer":
            lines.append('auth: {kind: bearer, token: "${API_TOKEN}"}')
        elif kind == "http" and how == "basic":
            lines.append('auth: {kind: basic, user: sync, password: "${API_PASSWORD}"}')
        elif kind in ("oauth2", "openIdConnect"):
            lines.append("auth: a login call, since the document names OAuth 2: see docs/cookbook/login.md")
    return list(dict.fromkeys(line for line in lines))


def _read_last_name(expression: str) -> str:
    """The last name of an expression, as a document writes it."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\w+)', expression)
    return "".join(found[-1]) if found else expression


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
