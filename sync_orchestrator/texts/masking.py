"""Masking of secrets in texts that are stored, logged, sent or shown.

Every value that came from the environment into the configuration counts as a secret. Names are registered when a
configuration is loaded; values are looked up when a text is masked, so that nothing is kept of an environment that
has changed since. The register belongs to the process, because log lines and exceptions of libraries belong to no
configuration.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

MASK = "***"

MIN_SECRET_LENGTH = 4
"""Shorter values occur in texts by chance."""

_NOT_SECRET = frozenset({"Bearer", "Basic"})
_registered: set[str] = set()


def register_variables(names: Iterable[str]) -> None:
    """Counts the values of these environment variables as secrets from here on, in this process."""
    _registered.update(names)


def mask_secrets(text: str, further: Sequence[str] = ()) -> str:
    """Replaces secrets in a text, however an echo may spell them: encoded for an address, HTML, JSON or base64.

    Args:
        text: Any text, such as what a third party responded.
        further: Secrets that did not come from the environment, as ``words_in`` finds them.
    """
    for word in (*further, *_environment_words()):
        secret = _compile_secret(word)
        if secret.core in text or secret.in_base64 in text:
            text = secret.pattern.sub(MASK, text)
    return text


def mask_all(value: object) -> Any:
    """A JSON document with the secrets in its texts replaced; the names of its fields are left as they are."""
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, dict):
        return {name: mask_all(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(part) for part in value]
    return value


def longest_secret(further: Sequence[str] = ()) -> int:
    """The length of the longest spelling, in characters: a text that is cut must be masked this much further."""
    return max((_compile_secret(word).longest for word in (*further, *_environment_words())), default=0)


def words_in(values: Iterable[str]) -> tuple[str, ...]:
    """What is masked of these secrets: each text and its words (of ``Bearer abc`` also ``abc``), longest first."""
    words = {word for value in values for word in (value, *value.split()) if len(word) >= MIN_SECRET_LENGTH}
    return tuple(sorted(words - _NOT_SECRET, key=len, reverse=True))


def mask_log_records() -> None:
    """Masks every log record of this process, its traceback included. A second call changes nothing."""
    if not issubclass(_factory_class(), _MaskedRecord):
        logging.setLogRecordFactory(_MaskedRecord)


def _factory_class() -> type:
    factory = logging.getLogRecordFactory()
    return factory if isinstance(factory, type) else object


class _MaskedRecord(logging.LogRecord):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and _environment_words():
            self.exc_text = mask_secrets(_FORMATTER.formatException(self.exc_info))

    def getMessage(self) -> str:
        return mask_secrets(super().getMessage())


_FORMATTER = logging.Formatter()


def _environment_words() -> tuple[str, ...]:
    return _words_once(tuple(sorted({os.environ[name] for name in _registered if name in os.environ})))


@lru_cache(maxsize=8)
def _words_once(values: tuple[str, ...]) -> tuple[str, ...]:
    return words_in(values)


@dataclass(frozen=True, slots=True)
class _Secret:
    """``core`` is the longest run of characters that nothing spells in another way: where it is not, no secret is."""

    pattern: re.Pattern[str]
    core: str
    in_base64: str
    longest: int


@lru_cache(maxsize=1024)
def _compile_secret(word: str) -> _Secret:
    in_base64 = base64.b64encode(word.encode("utf-8", "surrogatepass")).decode()
    ways = [_ways_to_spell(char) for char in word]
    spelled = "".join(f"(?:{'|'.join(map(re.escape, some))})" if len(some) > 1 else re.escape(some[0]) for some in ways)
    return _Secret(
        re.compile(f"{spelled}|{re.escape(in_base64.rstrip('='))}=*"),
        max(_SPELLED_IN_WAYS.split(word), key=len),
        in_base64.rstrip("="),
        max(sum(len(some[0]) for some in ways), len(in_base64)),
    )


_SPELLED_IN_WAYS = re.compile(r"[^A-Za-z0-9._~-]")


def _ways_to_spell(char: str) -> list[str]:
    """A character as up to two encodings, one in the other, spell it, longest first."""
    if not _SPELLED_IN_WAYS.match(char):
        return [char]
    once = {char, *(encode(char) for encode in _ENCODINGS)}
    return sorted({*once, *(encode(way) for way in once for encode in _ENCODINGS)}, key=len, reverse=True)


_ENCODINGS: tuple[Callable[[str], str], ...] = (
    lambda text: quote(text, safe="", errors="replace"),
    lambda text: quote(text, safe="", errors="replace").lower(),
    lambda text: text.replace(" ", "+"),
    html.escape,
    lambda text: "".join(f"&#{ord(char)};" for char in text),
    lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    lambda text: text.replace("'", "&apos;"),
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    lambda text: text.replace("\\", "\\\\").replace("'", "\\'"),  # as repr does
    lambda text: text.replace("/", "\\/"),  # as PHP's JSON does
    lambda text: text.encode("utf-8", "replace").decode("latin-1"),
)
