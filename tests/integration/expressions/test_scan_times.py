"""What others send is scanned in a time that grows with its length alone: no pattern explodes, no page holds us up."""

from __future__ import annotations

import ast
import asyncio
import itertools
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from http_server import Server
from starlette.requests import Request as Incoming
from starlette.responses import Response

import sync_orchestrator
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.link_header import next_link
from sync_orchestrator.adapters.http.responses import Answer, classify_by_status, sanitize_text
from sync_orchestrator.adapters.http.retry_after import pause_after, requested_wait_seconds
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import RequestSettings
from sync_orchestrator.config.http_access import ThrottleSettings
from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.core.failure_causes import cause_of_error
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.names import canonical_name
from sync_orchestrator.core.values.normalization import build_normalizers
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.functions import FUNCTIONS
from sync_orchestrator.expressions.selectors import ExpressionFailed, compile_selector
from sync_orchestrator.expressions.times import ValueFailed
from sync_orchestrator.texts.html_pages import is_html_page, text_of
from sync_orchestrator.texts.masking import mask_secrets
from sync_orchestrator.texts.unicode_forms import normalize_text

TIME_LIMIT_SECONDS = 2.0
"""Far more than a scan takes, far less than an explosion."""

WHERE = ("adapters", "api", "brokers", "core", "event_formats", "expressions", "texts", "cli/terminal.py")
"""Whose patterns may meet text of others; those elsewhere meet the configuration and an operator's own words."""

MADE_OF_PARTS = {
    "core/failure_causes.py:_error_text",
    "core/failure_causes.py:_normalize_line",
    "adapters/rest/records.py:accepts_key",
    "adapters/rest/records.py:_id_in_header",
    "adapters/files/source.py:_groups_by_name",
    "texts/masking.py:_compile_secret",
}
"""Functions that put a pattern together, of parts that operators write or that are escaped. What they are given is cut
(``MAX_MATCHED``, ``_MAX_SCANNED``) or a file's name."""

SIZES = {"core/failure_causes.py": 2000, "adapters/http/retry_after.py": 1000, "adapters/sql/database.py": 2000}
"""Characters that the patterns of a module are given at most, where the text is cut before; 4,000 elsewhere."""

PACKAGE = Path(sync_orchestrator.__path__[0])

PUMPED = [
    "<!-- -->",
    "<!--",
    "<",
    "a",
    "1",
    " ",
    '"',
    "'",
    "\\",
    '\\"',
    '"a',
    "'a",
    "a=",
    "a=1",
    ";a=1",
    "1.",
    "a1",
    ",",
    "…",
    "… ",
    "[",
    "{",
    '{"',
    "\n",
    "\t",
    "%",
    "%25",
    ".",
    "-",
    "_",
    "a.",
    "<a>;",
    "</",
    "<script",
    "<style ",
    "role ",
    "field ",
    'field "',
    "{{ ",
    "}}",
    '"error":',
    '"error":[',
    "“",
    "„",
    "‘",
    "e1",
    "0",
    "ff",
    "0-",
    "\u65e5",
]
ENDS = ["", "x", "\x00"]


def patterns() -> Iterator[tuple[str, str, re.Pattern[Any] | None]]:
    """Every pattern in the source of these packages: file, function, and the pattern (None: it is made of parts)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(WHERE):
            continue
        for function, call in calls(ast.parse(path.read_text()), "module"):
            try:
                yield name, function, eval(compile(ast.Expression(call), name, "eval"), {"re": FakeRe})
            except (NameError, AttributeError):
                yield name, function, None


class FakeRe:
    """Stands for ``re``: whatever is done with a pattern gives the pattern."""

    IGNORECASE, DOTALL, ASCII, MULTILINE = re.IGNORECASE, re.DOTALL, re.ASCII, re.MULTILINE

    @staticmethod
    def compile(pattern: Any, flags: int = 0) -> re.Pattern[Any]:
        return re.compile(pattern, flags)

    @staticmethod
    def of_text(pattern: Any, *rest: Any) -> re.Pattern[Any]:
        return re.compile(pattern)


def calls(tree: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr="compile")):
                yield inner, node
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr="escape")):
                pass
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=_), args=[pattern, *_]):
                made = ast.Attribute(ast.Name("re", ast.Load()), "of_text", ast.Load())
                yield inner, ast.fix_missing_locations(ast.Call(made, [pattern], []))
        yield from calls(node, inner)


def try_all() -> None:
    """Gives each pattern each text; names it first, for whoever ends this process because it does not."""
    for name, function, pattern in patterns():
        if pattern is not None:
            print(name, function, pattern.pattern, flush=True)
            for pumped, end in itertools.product(PUMPED, ENDS):
                text = (pumped * SIZES.get(name, 4_000))[: SIZES.get(name, 4_000) - 1] + end
                given = text.encode() if isinstance(pattern.pattern, bytes) else text
                pattern.search(given), pattern.match(given), pattern.fullmatch(given)


def test_patterns_are_found_and_those_of_parts_are_known() -> None:
    found = list(patterns())
    assert len(found) > 25
    assert {f"{name}:{function}" for name, function, pattern in found if pattern is None} == MADE_OF_PARTS


@pytest.mark.slow
def test_no_pattern_explodes() -> None:
    """In a process of its own, which can be ended: a pattern that explodes stops for nobody."""
    program = "import test_scan_times; test_scan_times.try_all()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            pytest.fail(f"too slow: {said.splitlines()[-1]}")
        assert process.returncode == 0
    assert len(said.splitlines()) > 25


def timed(work: Any) -> float:
    """The seconds of processor time that it takes: other programs of the machine do not count."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.parametrize("pumped", PUMPED)
def test_what_a_third_party_sends_is_understood_at_once(pumped: str) -> None:
    """As an error page, as each header that is read, and as an error of an adapter."""
    page = (pumped * 50_000)[:50_000] + "x"
    line = (pumped * 30_000)[:30_000] + "x"
    ascii_line = line.encode("ascii", "replace").decode()

    def understand() -> None:
        for content in (page, f"<!doctype html>{page}", f'{{"error": "{page}"}}'):
            answer = Answer(500, {"content-type": "text/plain"}, content.encode())
            failure = classify_by_status(answer, write=True)
            assert failure is not None
            cause_of_error(failure.detail, "k1")
        for header in ("retry-after", "ratelimit", "x-ratelimit-remaining", "ratelimit-reset", "date", "link"):
            answer = Answer(429, {header: ascii_line, "x-ratelimit-limit": "1"}, b"")
            requested_wait_seconds(answer, ThrottleSettings())
            pause_after(answer, ThrottleSettings())
        next_link(ascii_line)
        cause_of_error(str(CallFailed(Failure.PERMANENT, page)))
        with suppress(ExpressionFailed):
            compile_selector("to_number(@)").search(line)

    assert timed(understand) < TIME_LIMIT_SECONDS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_a_text_of_others_at_once(name: str) -> None:
    """Also a list of texts, and accents in an order that Python sorts in a time of the square of their number."""
    more: dict[str, list[Any]] = {"replace": ["a", "bb"], "split": ["a"], "join": [", "], "cut": [9]}

    def call_all() -> None:
        for pumped in (
            "a",
            " ",
            "&#",
            "&#9",
            "&#x",
            "&",
            "&amp",
            "1",
            "1.",
            "e1",
            "-",
            "+",
            "\r",
            "\u0301\u0327",
            "e\u0301",
            "\u00e9",
            "%",
            "2024-01-01T",
            "T00:00",
            "/Date(",
            "İ",
        ):
            text = (pumped * 100_000)[:100_000]
            for value in (text, text + "x", [text, text], [pumped] * 10_000):
                with suppress(ValueFailed):
                    FUNCTIONS[name].call(value, *more.get(name, []))

    assert timed(call_all) < TIME_LIMIT_SECONDS


@pytest.mark.parametrize("text", ["\u0301\u0327" * 50_000, "a" + "\u0327\u0301" * 50_000, "\u0344" * 100_000])
def test_accents_of_others_are_composed_at_once_and_as_python_does(text: str) -> None:
    begun = text[:2000]
    forms: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
    for form in forms:
        assert timed(lambda form=form: normalize_text(form, text)) < TIME_LIMIT_SECONDS
        assert normalize_text(form, begun) == unicodedata.normalize(form, begun)
    assert timed(lambda: canonical_name(text)) < TIME_LIMIT_SECONDS
    assert timed(lambda: other_key("k", text)) < TIME_LIMIT_SECONDS
    steps = build_normalizers({"f": CodecSettings.model_validate({"normalize": ["nfc", "html_unescape"]})})["f"]
    assert timed(lambda: steps(text)) < TIME_LIMIT_SECONDS


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("&#" + "9" * 5000 + ";", "\ufffd"),
        ("&#x" + "f" * 5000 + ";", "\ufffd"),
        ("&#" + "0" * 5000 + "65;", "A"),
        ("&#38;amp;", "&amp;"),
        ("&#0;", "\ufffd"),
        ("&#xD800;", "\ufffd"),
        ("&nbsp;&euro;&unknown;", "\xa0€&unknown;"),
    ],
)
def test_a_numbered_sign_of_any_length_is_one_sign(text: str, meant: str) -> None:
    steps = build_normalizers({"f": CodecSettings.model_validate({"normalize": ["html_unescape"]})})["f"]
    assert steps(text) == FUNCTIONS["html_unescape"].call(text) == meant


@pytest.mark.parametrize(
    "page",
    [
        "<!-- -->" * 60 + "x",
        "<!-- -->" * 20_000,
        "<!--" * 50_000,
        "<!doctype html>" + "<!--" * 50_000,
        "<html>" + "<script" * 50_000,
        "<html>" + "<script>" * 50_000 + "</script",
        "<html>" + "<" * 200_000,
        "<html>" + "</style" * 30_000,
        " " * 200_000 + "<html",
    ],
)
def test_a_page_is_shown_at_once(page: str) -> None:
    assert timed(lambda: sanitize_text(page)) < TIME_LIMIT_SECONDS
    assert timed(lambda: text_of(page)) < TIME_LIMIT_SECONDS


async def test_an_error_page_does_not_hold_up_other_calls(server: Server) -> None:
    async def handler(request: Incoming) -> Response:
        return Response("<!-- -->" * 26 + "x", 500, media_type="text/html")

    server.handler = handler
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    with pytest.raises(CallFailed, match="answer 500"):
        async with asyncio.timeout(TIME_LIMIT_SECONDS):
            await client.send(RequestSettings(path="/"), {}, write=True)
    await client.close()


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<!doctype html><title>Oops</title><p>No &amp; never</p>", "an HTML page: Oops No & never"),
        ("<!-- a --> <!-- b -->\n<HTML><body>x</body>", "an HTML page: x"),
        ("<html><script>var a = 1 < 2;</script>down", "an HTML page: down"),
        ("<html><style>p { }</style >down", "an HTML page: down"),
        ("<html>down<script>never ends", "an HTML page: down"),
        ("<html>down<!-- never ends", "an HTML page: down"),
        ("<html>1 < 2", "an HTML page: 1 < 2"),
        ("<h1>504</h1>", "an HTML page: 504"),
        ("<header>not a page</header>", "<header>not a page</header>"),
        ("<!-- <html> --> text", "<!-- <html> --> text"),
        ("<!-- never ends <html>", "<!-- never ends <html>"),
    ],
)
def test_the_text_of_a_page(page: str, text: str) -> None:
    assert sanitize_text(page) == text


def test_a_page_is_one_whatever_the_case() -> None:
    assert is_html_page("\ufeff \n<!DocType HTML>")
    assert text_of("<html>\u0130<SCRIPT>x</SCRIPT>y").split() == ["\u0130", "y"]


def test_texts_are_cut_before_they_are_looked_at() -> None:
    long = "x" * 30_000_000
    assert timed(lambda: sanitize_text(long, ("secret",) * 100)) < TIME_LIMIT_SECONDS
    assert len(str(CallFailed(Failure.PERMANENT, long))) == 2000


@pytest.mark.parametrize(
    "secret", ["%%%%%%%%", "%25%25%25%25", "&amp;&amp;&amp;", "\\\\\\\\", "''", "/" * 40, "äöüäöü"]
)
def test_a_secret_of_odd_signs_is_looked_for_at_once(secret: str) -> None:
    for pumped in ("%25", "%2525", "&amp;", "&amp;amp;", "\\", "\\'", "'", "/", "\\/", "%5c", "ä", "Ã¤", secret):
        assert timed(lambda text=pumped * 5000: mask_secrets(text + "x", (secret,))) < TIME_LIMIT_SECONDS


def test_a_secret_at_the_cut_is_masked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from sync_orchestrator.config.environment import FromEnvironment

    monkeypatch.setenv("CUT_SECRET", "0123456789abcdef")
    FromEnvironment.from_text("${CUT_SECRET}")
    for before in range(1980, 2001):
        assert "0123" not in str(CallFailed(Failure.PERMANENT, "." * before + "0123456789abcdef"))
    assert mask_secrets("0123456789abcdef") == "***"
