"""README.md and docs/ as a reader takes them: examples are run, what they name is there, links lead somewhere.

Examples are held true by their kind: a fence of a language that is not known here fails, and so does a command of a
program that is not.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
import typer
import yaml
from api_client import InProcess
from documents import Document, Wrong, command_lines, read
from jinja2 import Environment
from markdown_it.token import Token
from paths import ROOT
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from demo.data import stones
from demo.sources import ROLES
from sync_orchestrator import composition
from sync_orchestrator import config as configuration
from sync_orchestrator.api.service import create_app
from sync_orchestrator.cli import app
from sync_orchestrator.cli.reference import write_reference
from sync_orchestrator.config.sources import RestSourceSettings
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.states import State
from sync_orchestrator.core.notifications.alert_messages import ACTIONS
from sync_orchestrator.core.service.api_keys import make_key
from sync_orchestrator.errors import ConfigError, InvalidEvent
from sync_orchestrator.event_formats.strict_json import parse
from sync_orchestrator.expressions import templates

PACKAGE = ROOT / "sync_orchestrator"
DEMO = ROOT / "demo" / "sync.yaml"
TOP = [ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING", "CHANGELOG")]
DOCUMENTS = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
OF_THE_READER = {"sync.yaml", "product", "article"}
"""Files and entities that documents name though the reader is to write them."""
SAMPLES = {"ENTITY": "stone", "KEY": "D-000123", "GROUP": "Round", "NAME": "erp", "SOURCE": "lab"}
HARMLESS = {("status",), ("events", "list"), ("check",), ("keys", "list")}
"""Commands that are run for real, on an empty database."""


# Documents ----------------------------------------------------------------------------------------------------------


def written(text: str) -> Document:
    """A document that only a test has."""
    return Document(ROOT / "docs" / "written.md", text)


# Programs -----------------------------------------------------------------------------------------------------------


@cache
def make_targets() -> frozenset[str]:
    """Those that `make help` shows: a person's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return frozenset(line.split()[0] for line in shown.stdout.splitlines())


@cache
def root_command() -> Any:
    """The program as its own parser knows it; made once, since that takes longer than most of what is done with it."""
    return typer.main.get_command(app)


def hold_make(words: Sequence[str]) -> None:
    for word in words:
        if "=" not in word and word not in make_targets():
            raise Wrong(f"make has no target '{word}'")


def hold_python(words: Sequence[str]) -> None:
    if words[:1] != ["-m"] or find_spec(words[1]) is None:
        raise Wrong(f"there is no such module: python {shlex.join(words)}")


def hold_cd(words: Sequence[str]) -> None:
    if len(words) != 1 or not (ROOT / words[0]).is_dir():
        raise Wrong(f"there is no such folder: cd {shlex.join(words)}")


def hold_export(words: Sequence[str]) -> None:
    if not words or not all(re.match(r"[A-Z_]+=", word) for word in words):
        raise Wrong(f"export NAME=value, not {shlex.join(words)}")


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": hold_make,
    "python": hold_python,
    "python3": hold_python,
    "cd": hold_cd,
    "export": hold_export,
}


@dataclass(frozen=True)
class Call:
    """What a curl command would send."""

    method: str
    url: str
    headers: dict[str, str]
    body: str | None


def curl(words: Sequence[str]) -> Call:
    """Understands as much of curl as an example should need."""
    method, body, headers, urls = None, None, {}, []
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ("-X", "--request"):
            method = left.pop(0)
        elif word in ("-H", "--header"):
            name, _, value = left.pop(0).partition(":")
            headers[name.strip()] = value.strip()
        elif word in ("-d", "--data", "--data-binary", "--data-raw"):
            body = left.pop(0)
        elif word in ("-s", "-S", "-sS", "-f", "-i", "--silent", "--show-error", "--fail", "--include"):
            continue
        elif word.startswith("-"):
            raise Wrong(f"curl {word}: not understood by this test")
        else:
            urls.append(word)
    if len(urls) != 1 or (body or "").startswith("@"):
        raise Wrong("curl: exactly one URL, and no body from a file")
    return Call(method or ("GET" if body is None else "POST"), urls[0], headers, body)


def simple_commands(words: Sequence[str]) -> list[list[str]]:
    """What stands between pipes and the like, without variables set in front."""
    parts = [
        list(part)
        for joined, part in itertools.groupby(words, lambda word: word in ("|", "&&", "||", ";", "&"))
        if not joined
    ]
    plain = [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), part)) for part in parts]
    return [part for part in plain if part]


# The command line ---------------------------------------------------------------------------------------------------


def find_command(words: Sequence[str]) -> tuple[Any, list[str], list[str]]:
    """The command, its path and the words that are left."""
    command = root_command()
    left, path = list(words), list[str]()
    while hasattr(command, "commands") and left and not left[0].startswith("-"):
        if left[0] not in command.commands:
            raise Wrong(f"sync-orchestrator has no command '{' '.join([*path, left[0]])}'")
        path.append(left.pop(0))
        command = command.commands[path[-1]]
    return command, path, left


def hold_command_line(words: Sequence[str]) -> None:
    """Has the program's own parser read it, and nothing done."""
    root = root_command()
    command, path = root, find_command(words)[1]
    for name in path:
        command = command.commands[name]
    given: dict[str, Any] = {}
    if not hasattr(command, "commands"):
        command.callback = given.update
    try:
        root.main(list(words), prog_name="sync-orchestrator", standalone_mode=False)
    except Exception as error:
        raise Wrong(f"sync-orchestrator {shlex.join(words)}: {error or type(error).__name__}") from None
    known = {*demo_config().entities, *OF_THE_READER}
    if path != ["init"] and (entity := given.get("entity")) and entity not in known:
        raise Wrong(f"the demo has no entity '{entity}'")


def hold_usage(text: str) -> list[list[str]]:
    """A command as prose names it: `[optional]`, `this|that`, `PLACEHOLDER`, and what is needed may be left out."""
    choices = [word.split("|") for word in text.replace("[", "").replace("]", "").split()]
    usages = [list(words) for words in itertools.product(*choices)]
    for words in usages:
        command, path, left = find_command(words)
        if not hasattr(command, "commands"):
            hold_command_line([*path, *_filled(command, left)])
        elif left:
            raise Wrong(f"sync-orchestrator {' '.join(path)} has no option '{left[0]}'")
    return usages


def _filled(command: Any, words: Sequence[str]) -> list[str]:
    options = {name: param for param in command.params if param.param_type_name == "option" for name in param.opts}
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    filled: list[str] = []
    named: set[str] = set()
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            param = options.get(word)
            named.add(word)
            filled.append(word)
            if param is not None and not param.is_flag:
                value = left.pop(0) if left and not left[0].startswith("-") else "1"
                filled.append("1" if value.isupper() else value)
            continue
        if word.isupper() and arguments and arguments[0].name.upper() != word:
            raise Wrong(f"{command.name} has {arguments[0].name.upper()}, not {word}")
        filled.append(SAMPLES.get(word, "1") if word.isupper() else word)
        arguments = arguments[1:] if arguments and arguments[0].nargs == 1 else arguments
    filled += [SAMPLES.get(param.name.upper(), "1") for param in arguments if param.required]
    for name, param in options.items():
        if param.required and not named.intersection(param.opts):
            filled += [name, "1"]
    return filled


# Configuration ------------------------------------------------------------------------------------------------------


@cache
def demo_config() -> configuration.Config:
    return configuration.load(DEMO)


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
    return new


def whole_configuration(fragment: Mapping[str, Any]) -> dict[str, Any]:
    """A fragment of sync.yaml in its place in the demo's; where that is, its names say."""
    whole: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    models: list[tuple[type[BaseModel], tuple[str, ...]]] = [
        (configuration.Config, ()),
        (configuration.EntitySettings, ("entities", "stone")),
        (configuration.ThirdPartySettings, ("third_parties", "erp")),
        (RestSourceSettings, ("sources", "lab")),
        (configuration.PartSettings, ("entities", "stone", "parts", "lab")),
        (configuration.TargetSettings, ("entities", "stone", "third_party")),
        (configuration.ValidationSettings, ("entities", "stone", "validation")),
        (configuration.SourceCheckSettings, ("entities", "stone", "source_check")),
        (configuration.RetrySettings, ("retry",)),
        (configuration.LimitSettings, ("limits",)),
        (configuration.AlertSettings, ("alerts",)),
    ]
    for model, place in models:
        if set(fragment) <= set(model.model_fields):
            nested: dict[str, Any] = dict(fragment)
            for name in reversed(place):
                nested = {name: nested}
            merged = _merged(whole, nested)
            if {"sources", "third_parties", "entities"} <= set(nested):
                merged = nested
            return dict(merged)
    raise Wrong(f"not a part of sync.yaml: {', '.join(map(str, fragment))}")


def setting_exists(dotted: str) -> bool:
    """Follows names through the models; names that a person gives are left out."""
    model: Any = configuration.Config
    for name in dotted.split("."):
        field = model.model_fields.get(name) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return False
        model = field.annotation
    return True


# The reader ---------------------------------------------------------------------------------------------------------


class Reader:
    """Believes nothing: tries each example by its kind, with the demo's configuration and an empty database."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, engine: Callable[[], Engine]) -> None:
        self._folder = folder
        self._patch = patch
        self._engine = engine
        self._kinds: dict[str, Callable[[str], None]] = {
            "text": self._drawing,
            "sh": self._shell,
            "console": self._shell,
            "yaml": self._yaml,
            "json": self._json,
            "python": self._python,
            "sql": self._sql,
        }

    def try_fence(self, fence: Token) -> None:
        words = fence.info.split()
        if not words or words[0] not in self._kinds:
            raise Wrong(f"a fence of language '{fence.info}'; known are {', '.join(self._kinds)}")
        self._kinds[words[0]](fence.content)

    def try_inline(self, code: str) -> None:
        first = code.split()[0] if code.split() else ""
        if first == "sync-orchestrator":
            for words in hold_usage(code.removeprefix("sync-orchestrator")):
                self._run(words)
        elif first == "make":
            hold_make(code.split()[1:])
        elif first in root_command().commands:
            hold_usage(code)
        elif re.fullmatch(r"sync\.\w+(\(\))?", code) and code not in OF_THE_READER:
            self._in_the_database(code)
        elif re.fullmatch(r"\.?\w[\w./-]*(/|\.(py|md|yaml|toml|sql|sh|png))", code):
            if code not in OF_THE_READER and not any((base / code).exists() for base in (ROOT, PACKAGE)):
                raise Wrong(f"there is no {code}")
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code) and code.split(".")[0] in configuration.Config.model_fields:
            if not setting_exists(code):
                raise Wrong(f"sync.yaml has no {code}")
        elif re.fullmatch(r"[a-z_]+: \S.*", code):
            self._yaml(code)

    def send(self, call: Call) -> httpx.Response:
        """To the API service, in this process."""

        async def sent() -> httpx.Response:
            config = demo_config().model_copy(update={"routes": {}})
            service = create_app(Context(self._engine(), config, {}))
            transport = InProcess(service, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport) as client:
                return await client.request(call.method, call.url, headers=call.headers, content=call.body)

        port = root_command().commands["up"].params[1].default
        if (urlsplit(call.url).hostname, urlsplit(call.url).port) != ("127.0.0.1", port):
            raise Wrong(f"the API service is at 127.0.0.1:{port}, not {call.url}")
        return asyncio.run(sent())

    def key(self) -> str:
        """One that may do everything."""
        with self._engine().begin() as connection:
            return make_key(connection, "a reader", ["admin"], [])

    def filled_in(self, text: str) -> str:
        """A shell block without its ``export NAME=$(sync-orchestrator …)``, and with what they print in its place."""
        for line, name, command in re.findall(r"^(export (\w+)=\$\(sync-orchestrator (.+?)\)\n)", text, re.MULTILINE):
            hold_command_line(shlex.split(command))
            text = text.replace(line, "").replace(f"${name}", self._printed(shlex.split(command)).strip())
        return text

    def _drawing(self, text: str) -> None:
        for line in text.splitlines():
            if re.match(r"\s*(\$ |make |curl |sync-orchestrator )", line):
                raise Wrong(f"a command in a block that is not tried: {line.strip()}")

    def _shell(self, text: str) -> None:
        for words, output in command_lines(self.filled_in(text)):
            for part in simple_commands(words):
                self._command(part, output)

    def _command(self, words: Sequence[str], output: str) -> None:
        program, left = Path(words[0]).name, list(words[1:])
        if program == "sync-orchestrator":
            hold_command_line(left)
            printed = self._run(left)
            if output and (printed or "").strip() != output.strip():
                raise Wrong(f"sync-orchestrator {shlex.join(left)} says {printed!r}")
        elif program == "curl":
            self._curl(left, output)
        elif program in PROGRAMS:
            PROGRAMS[program](left)
            if output:
                raise Wrong(f"an answer that nothing compares: {output.strip()[:60]}")
        else:
            raise Wrong(f"'{program}' is a program that this test does not know")

    def _curl(self, words: Sequence[str], output: str) -> None:
        answer = self.send(curl(words))
        if not answer.is_success:
            raise Wrong(f"answered {answer.status_code}: {answer.text}")
        shown = output.strip().splitlines()
        if shown and shown[0].startswith("HTTP/") and shown[0].split()[1] != str(answer.status_code):
            raise Wrong(f"answered {answer.status_code}, not {shown[0]}")
        if shown and not shown[-1].startswith("HTTP/") and json.loads(shown[-1]) != answer.json():
            raise Wrong(f"answered {answer.text}")

    def _run(self, words: Sequence[str]) -> str | None:
        if tuple(find_command(words)[1]) not in HARMLESS or {"--help", "--live"}.intersection(words):
            return None
        return self._printed(words)

    def _printed(self, words: Sequence[str]) -> str:
        engine = self._engine()
        self._patch.setattr(composition, "open_database", lambda: engine)
        self._patch.setattr(composition, "require_database", lambda: None)
        result = CliRunner().invoke(app, list(words), env={"SYNC_CONFIG": str(DEMO)})
        if result.exit_code != 0:
            raise Wrong(f"sync-orchestrator {shlex.join(words)}: {result.output}")
        return result.stdout

    def _yaml(self, text: str) -> None:
        try:
            fragment = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise Wrong(f"not YAML: {error}") from None
        if not isinstance(fragment, dict):
            raise Wrong("not a part of sync.yaml")
        path = self._folder / "sync.yaml"
        path.write_text(yaml.safe_dump(whole_configuration(fragment)))
        for name in re.findall(r"\$\{(\w+)\}", text):
            self._patch.setenv(name, "secret" * 4)
        try:
            configuration.load(path)
        except ConfigError as error:
            raise Wrong(str(error)) from None

    def _json(self, text: str) -> None:
        try:
            document = parse(text.encode())
        except InvalidEvent as error:
            raise Wrong(str(error)) from None
        events = document if isinstance(document, list) else [document]
        if any(isinstance(event, dict) and "specversion" in event for event in events):
            kind = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key()}"}
            answer = self.send(Call("POST", "http://127.0.0.1:8700/v1/events", kind, text))
            if answer.status_code != 202:
                raise Wrong(f"the API service answers {answer.status_code}: {answer.text}")

    def _python(self, text: str) -> None:
        self._patch.chdir(self._folder)
        try:
            exec(compile(text, "example", "exec"), {"__name__": "example"})
        except Exception as error:
            raise Wrong(f"{type(error).__name__}: {error}") from None

    def _sql(self, text: str) -> None:
        """Statements on tables that the examples have, which are made for it and taken back, with what they do."""
        with self._engine().connect() as connection:
            for columns in (
                "products (sku text, store text, name text, updated_at timestamptz)",
                "variants (product text, sku text, price numeric, updated_at timestamptz)",
            ):
                connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {columns} ON COMMIT DROP")
            try:
                shown = connection.exec_driver_sql(text)
                if shown.returns_rows:
                    shown.all()
            except SQLAlchemyError as error:
                raise Wrong(f"the database refuses it: {error}") from None

    def _in_the_database(self, name: str) -> None:
        with self._engine().begin() as connection:
            [row] = run(
                connection,
                "SELECT coalesce(to_regclass(%(name)s)::oid, to_regproc(%(name)s)::oid) AS oid",
                name=name.removesuffix("()"),
            )
        if row.oid is None:
            raise Wrong(f"the database has no {name}")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Reader:
    def engine() -> Engine:
        found: Engine = request.getfixturevalue("engine")
        return found

    return Reader(tmp_path, monkeypatch, engine)


def hold_links(document: Document) -> None:
    for kind, target in document.links():
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            if kind == "image" or parts.scheme != "https":
                raise Wrong(f"{target}: links are relative or https, images are files here")
            continue
        path = (document.path.parent / unquote(parts.path)).resolve() if parts.path else document.path
        if parts.path and (not path.exists() or not path.is_relative_to(ROOT)):
            raise Wrong(f"{target}: there is no such file")
        if kind == "image" and not path.read_bytes().startswith((b"\x89PNG\r\n", b"<svg", b"\xff\xd8")):
            raise Wrong(f"{target}: not an image")
        if parts.fragment:
            anchors = (read(path) if parts.path else document).anchors()
            if parts.fragment not in anchors:
                raise Wrong(f"{target}: there is no such heading; there is {', '.join(sorted(anchors))}")


@cache
def variables() -> frozenset[str]:
    """The environment variables that the code reads: names that stand alone there, not those in its texts."""
    constants = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return frozenset(name for name in constants if re.fullmatch(r"SYNC_[A-Z_]+", name))


def hold_variables(document: Document) -> None:
    for name in sorted(set(re.findall(r"\bSYNC_[A-Z_]+\b", document.text)) - variables()):
        raise Wrong(f"no code reads {name}")


def hold_addresses(document: Document) -> None:
    """What the documents say of where things are is what `up` does."""
    ports = {param.default for param in root_command().commands["up"].params}
    for port in re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)", document.text):
        if int(port) not in ports:
            raise Wrong(f"nothing listens at port {port} unless told")


# What the documents say ---------------------------------------------------------------------------------------------

ALL = [read(path) for path in DOCUMENTS]
each_document = pytest.mark.parametrize("document", ALL, ids=[document.name for document in ALL])


def _is_recipe(document: Document, fence: Token) -> bool:
    """Whether it is run by the tests of the cookbook, as a whole with what its pages leave out."""
    return document.path.parent.name == "cookbook" and fence.info in ("yaml", "text")


@pytest.mark.parametrize(
    "fence",
    [
        pytest.param(fence, id=f"{document.name}:{fence.map[0] + 1}")
        for document in ALL
        for fence in document.fences()
        if fence.map and not _is_recipe(document, fence)
    ],
)
def test_example_holds(reader: Reader, fence: Token) -> None:
    reader.try_fence(fence)


@each_document
def test_what_is_named_in_a_line_is_there(reader: Reader, document: Document) -> None:
    for code in document.inline_codes():
        reader.try_inline(code)


@each_document
def test_links_and_images_lead_somewhere(document: Document) -> None:
    hold_links(document)


@each_document
def test_variables_are_read_and_addresses_are_the_defaults(document: Document) -> None:
    hold_variables(document)
    hold_addresses(document)


def test_the_event_of_the_readme_is_recorded_before_the_202_that_it_promises(reader: Reader, engine: Engine) -> None:
    [words] = [
        words
        for fence in ALL[0].fences()
        if "curl" in fence.content
        for words, _ in command_lines(reader.filled_in(fence.content))
        if words[0] == "curl"
    ]
    call = curl(words[1:])
    answers = [reader.send(call) for _ in range(2)]
    assert "answered with 202" in ALL[0].text
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (202, {"accepted": 1, "duplicates": 0}),
        (202, {"accepted": 0, "duplicates": 1}),
    ]
    with engine.begin() as connection:
        [row] = run(connection, "SELECT entity, key, source, event_id, action, state, data FROM sync.events")
    event = json.loads(call.body or "")
    assert tuple(row) == ("stone", event["subject"], event["source"], event["id"], "update", "pending", event["data"])
    [stone] = [stone for stone in stones() if stone["sku"] == event["subject"]]
    assert event["data"] == {
        "stone": stone["sku"],
        **{name: stone[name] for name in ROLES["lab"].fields},
        "x": event["data"]["x"],
    }
    assert event["data"]["x"] != stone["x"], "it changes nothing"
    assert abs(datetime.fromisoformat(event["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_readme_shows_every_command() -> None:
    root = root_command()
    commands = {
        (name, *rest)
        for name, command in root.commands.items()
        for rest in ([(sub,) for sub in command.commands] if hasattr(command, "commands") else [()])
    }
    named = {
        tuple(find_command(words)[1])
        for code in ALL[0].inline_codes()
        if code.startswith("sync-orchestrator ")
        for words in hold_usage(code.removeprefix("sync-orchestrator "))
    }
    assert commands - named <= {("demo",), ("drain",), ("epoch",), ("db", "url"), ("db", "stop")}


def test_the_reference_of_commands_is_that_of_the_commands() -> None:
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == write_reference(), "run `make reference`"
    headings = read(ROOT / "docs" / "commands.md").headings("h2")
    root = root_command()
    assert headings == [
        " ".join([name, *rest])
        for name, command in root.commands.items()
        for rest in ([[sub] for sub in command.commands] if hasattr(command, "commands") else [[]])
    ]
    assert {"drain", "epoch", "db url", "db stop"} <= set(headings)


def test_every_row_of_the_reference_says_what_it_means() -> None:
    tables = read(ROOT / "docs" / "commands.md").tables()
    assert all(row[3] and row[0] for table in tables for row in table)


def test_every_filter_of_templates_is_described() -> None:
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name in ("templates.md", "values.md")]
    cells = [row[0].strip("`") for path in pages for table in read(path).tables() for row in table]
    named = {*cells, *(cell.partition("(")[0] for cell in cells)}
    added = templates._text.filters.keys() - Environment().filters.keys() | {"tojson"}
    assert {name for name in added if not name.startswith("_")} <= named


def test_every_alert_has_its_section() -> None:
    assert set(read(ROOT / "docs" / "operations.md").headings("h2")) == set(ACTIONS)


def test_each_rule_that_is_cited_is_on_the_page_of_guarantees() -> None:
    """And each test that the page names for a rule is one of that rule, where the rule's number is in its name."""
    sections = re.split(r"^### Rule (\d+): ", (ROOT / "docs/guarantees.md").read_text(encoding="utf-8"), flags=re.M)
    pages = {int(number): text for number, text in zip(sections[1::2], sections[2::2], strict=True)}
    assert list(pages) == list(range(1, 41))
    files = [*(ROOT / "sync_orchestrator").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    cited = {int(number) for text in texts.values() for number in re.findall(r"(?:rule |test_rule_)(\d+)", text)}
    assert cited <= pages.keys()
    for number, page in pages.items():
        named = {ROOT / "tests" / name for name in re.findall(r"\(\.\./tests/([\w/]+\.py)\)", page.split("\n## ")[0])}
        assert named
        assert named <= texts.keys()
        if number >= 20:
            assert named == {path for path, text in texts.items() if f"def test_rule_{number}_" in text}, number


def test_the_states_and_their_sum_are_those_of_the_code() -> None:
    states = {str(state) for state in State}
    [table] = [table for table in read(ROOT / "docs" / "architecture.md").tables() if table[0][0] == "state"]
    assert {row[0] for row in table[1:]} == states
    total = re.search(r"received = ([\w +]+?) at all times", " ".join(ALL[0].text.split()))
    assert total is not None
    assert set(total[1].split(" + ")) == states


def test_python_of_the_readme_is_that_of_the_package() -> None:
    wanted = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    assert {found for document in ALL for found in re.findall(r"Python (\d\.\d+)", document.text)} == {wanted[1]}


# And what they must not say -----------------------------------------------------------------------------------------

EVENT = {"specversion": "1.0", "source": "lab", "id": "1", "type": "stone.deleted", "subject": "a", "version": 1}
KEY = "export KEY=$(sync-orchestrator keys create lab --scope events:lab)\n"
CURL = "curl http://127.0.0.1:8700/v1/events -H 'Content-Type: application/json' -H \"Authorization: Bearer $KEY\" -d"

BAD_FENCES = [
    ("", "a drawing", "a fence of language ''"),
    ("bash", "make up", "a fence of language 'bash'"),
    ("text", "$ make up", "not tried"),
    ("sh", "make nothing", "no target 'nothing'"),
    ("sh", "make test && make nothing", "no target 'nothing'"),
    ("sh", "frobnicate", "'frobnicate' is a program"),
    ("sh", "make up | frobnicate", "'frobnicate' is a program"),
    ("sh", "echo 'no end", "does not end"),
    ("sh", "cd nowhere", "no such folder"),
    ("sh", "export nothing", "export NAME=value"),
    ("sh", "python -m demo.nothing", "no such module"),
    ("sh", "sync-orchestrator frobnicate", "no command 'frobnicate'"),
    ("sh", "sync-orchestrator events frobnicate", "no command 'events frobnicate'"),
    ("sh", "sync-orchestrator status --xml", "--xml"),
    ("sh", "sync-orchestrator full-sync", "Missing parameter: entity"),
    ("sh", "sync-orchestrator full-sync nothing", "no entity 'nothing'"),
    ("sh", "sync-orchestrator events list --state done", "done"),
    ("sh", "sync-orchestrator events discard 1", "Missing parameter: reason"),
    ("console", "$ sync-orchestrator check\nall is well", "sync.yaml is in order"),
    ("console", "$ make up\nit is up", "nothing compares"),
    ("sh", f"{CURL} '{{}}'", "answered 401"),
    ("sh", f"{KEY}{CURL} '{{}}'", "answered 422"),
    ("sh", "export KEY=$(sync-orchestrator keys create lab)\n", "Missing parameter: scope"),
    ("sh", f"{CURL.replace('8700', '3000')} '{{}}'", "the API service is at"),
    ("sh", f"{CURL} @event.json", "no body from a file"),
    ("sh", f"{CURL} '{{}}' --proxy nowhere", "--proxy"),
    ("console", f'{KEY}$ {CURL} \'{json.dumps(EVENT)}\'\n{{"accepted": 2, "duplicates": 0}}', 'answered {"accepted":1'),
    ("console", f"{KEY}$ {CURL} '{json.dumps(EVENT)}'\nHTTP/1.1 200 OK", "answered 202"),
    ("yaml", "alerts: {url: x}", "alerts.url"),
    ("yaml", "alerts: [", "not YAML"),
    ("yaml", "services: {web: {}}", "not a part of sync.yaml"),
    ("yaml", "on_missing: guess", "on_missing"),
    ("yaml", "sources: {}\nthird_parties: {}\nentities: {}", "sources"),
    ("sql", "SELECT price FROM products", "the database refuses it"),
    ("json", "{", "not JSON"),
    ("json", json.dumps(EVENT | {"type": "nothing.deleted"}), "answers 422"),
    ("python", "1 / 0", "ZeroDivisionError"),
    ("python", "from sync_orchestrator.core.notifications.alerts import frobnicate", "ImportError"),
]


@pytest.mark.parametrize(("language", "text", "complaint"), BAD_FENCES)
def test_example_that_does_not_hold_is_found(reader: Reader, language: str, text: str, complaint: str) -> None:
    [fence] = written(f"```{language}\n{text}\n```").fences()
    with pytest.raises(Wrong) as caught:
        reader.try_fence(fence)
    assert complaint in str(caught.value)


GOOD_FENCES = [
    ("sh", "SYNC_CONFIG=demo/sync.yaml sync-orchestrator validate stone --full  # all of it\n\nexport A=b\ncd demo"),
    ("sh", "sync-orchestrator full-sync \\\n  stone --group 'a b' \\\n  --allow-deletions 3"),
    ("sh", "make up PYTHON=python3.12"),
    ("sh", "sync-orchestrator events --help"),
    ("console", "$ sync-orchestrator events list\nthere are none\n$ make up"),
    (
        "console",
        f'{KEY}$ {CURL} \'{json.dumps(EVENT, indent=1)}\'\nHTTP/1.1 202 Accepted\n{{"accepted": 1, "duplicates": 0}}',
    ),
    ("yaml", 'alerts:\n  urls: ["mailto://user:${PASSWORD}@mail.example.org"]'),
    ("yaml", "on_missing: fetch\nvalidation: {repair: ask}"),
    ("yaml", "rate: 5\nbreaker: {failures: 3}"),
    ("yaml", DEMO.read_text()),
    ("json", json.dumps([EVENT, EVENT | {"id": "2"}])),
    ("json", '{"accepted": 1}'),
    ("python", "from sync_orchestrator.core.ports import SourceSystem\nassert SourceSystem"),
    ("text", "a ──▶ b"),
]


@pytest.mark.parametrize(("language", "text"), GOOD_FENCES)
def test_example_that_holds_passes(reader: Reader, language: str, text: str) -> None:
    [fence] = written(f"```{language}\n{text}\n```").fences()
    reader.try_fence(fence)


@pytest.mark.parametrize(
    "code",
    [
        "sync-orchestrator frobnicate",
        "events frobnicate",
        "events list|frobnicate",
        "full-sync KEY",
        "status [--xml]",
        "validate --repair perhaps",
        "make nothing",
        "core/nothing.py",
        "nothing/",
        "sync.nothing",
        "sync.nothing()",
        "alerts.url",
        "alerts.urls.none",
        "repair: perhaps",
        "records --all",
    ],
)
def test_name_that_is_not_there_is_found(reader: Reader, code: str) -> None:
    [found] = written(f"See `{code}`.").inline_codes()
    with pytest.raises(Wrong):
        reader.try_inline(found)


@pytest.mark.parametrize(
    "text",
    [
        "[x](nothing.md)",
        "[x](../../outside.md)",
        "[x](architecture.md#nothing)",
        "[x](#nothing)\n# Some",
        "![x](nothing.png)",
        "![x](architecture.md)",
        "![x](https://example.org/x.png)",
        "[x](http://example.org)",
        "[x][1]\n\n[1]: nothing.md",
        "<a href='nothing.md'>x</a>",
        "<img src='nothing.png'>",
    ],
)
def test_link_that_leads_nowhere_is_found(text: str) -> None:
    with pytest.raises(Wrong):
        hold_links(written(text))


def test_links_that_lead_somewhere_pass() -> None:
    hold_links(
        written(
            "# A `b`, c!\n# A b c\n[1](#a-b-c) [2](#a-b-c-1) [3](architecture.md#the-flow) [4](../demo/) "
            "[5](https://example.org/#x) ![6](pictures/lineage.png) <https://example.org>"
        )
    )


def test_variable_or_address_that_is_not_there_is_found() -> None:
    with pytest.raises(Wrong, match="SYNC_NOTHING"):
        hold_variables(written("Set `SYNC_NOTHING` and SYNC_CONFIG."))
    with pytest.raises(Wrong, match="8701"):
        hold_addresses(written("At http://127.0.0.1:8701."))
