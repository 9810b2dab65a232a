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
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"

MIN_SECRET_LENGTH = 4
"""Shorter values occur in texts by chance."""

_NOT_SECRET = frozenset({"Bearer", "Basic"})
_registered: set[str] = set()


def register_variables(names: Iterable[str]) -> None:
    """Counts the values of these environment variables as secrets from here on, in this process."""
    _registered.update(names)


def mask(text: str, further: Sequence[str] = ()) -> str:
    """Replaces secrets in a text.

    Args:
        text: Any text, such as what a third party responded.
        further: Spellings of secrets that did not come from the environment, as ``spellings`` makes them.
    """
    for secret in (*further, *_environment_spellings()):
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def mask_all(value: Any) -> Any:
    """A JSON document with the secrets in its texts replaced; the names of its fields are left as they are."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {name: mask_all(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(part) for part in value]
    return value


def longest_secret(further: Sequence[str] = ()) -> int:
    """The length of the longest spelling, in characters: a text that is cut must be masked this much further."""
    return max(map(len, (*further, *_environment_spellings())), default=0)


def spellings(values: Iterable[str]) -> tuple[str, ...]:
    """Texts and their words (of ``Bearer abc`` also ``abc``), in each way an echo may spell them; longest first."""
    words = {word for value in values for word in (value, *value.split()) if len(word) >= MIN_SECRET_LENGTH}
    return tuple(sorted({way for word in words - _NOT_SECRET for way in _spelled(word)}, key=len, reverse=True))


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
        if self.exc_info and _environment_spellings():
            self.exc_text = mask(_FORMATTER.formatException(self.exc_info))

    def getMessage(self) -> str:
        return mask(super().getMessage())


_FORMATTER = logging.Formatter()


def _environment_spellings() -> tuple[str, ...]:
    return _spelled_once(tuple(sorted({os.environ[name] for name in _registered if name in os.environ})))


@lru_cache(maxsize=8)
def _spelled_once(values: tuple[str, ...]) -> tuple[str, ...]:
    return spellings(values)


def _spelled(word: str) -> set[str]:
    return {
        word, repr(word)[1:-1], json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1], html.escape(word),
        html.escape(word, quote=False), word.replace("&", "&amp;").replace('"', "&#34;").replace("'", "&#39;"),
        quote(word, safe="", errors="replace"), quote(word, errors="replace"), quote_plus(word, errors="replace"),
        base64.b64encode(word.encode("utf-8", "surrogatepass")).decode(),
    }
